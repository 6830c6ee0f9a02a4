"""The benchmark of recall reads what it says it reads, from tiny files in the forms of the data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

LOCOMO = {
    "session_1_date_time": "11:01 am on 17 December, 2022",
    "session_1": [
        {"dia_id": "D1:1", "speaker": "Ann", "text": "I adopted a cat called Miso."},
        {"dia_id": "D1:2", "speaker": "Bob", "text": "Look!", "blip_caption": "a grey cat"},
    ],
    "session_2_date_time": "8:00 pm on 1 March, 2023",
    "session_2": [{"dia_id": "D2:1", "speaker": "Ann", "text": "My bicycle was stolen in Lisbon."}],
    "qa": [
        {"question": "What is Ann's cat called?", "category": 4, "evidence": ["D1:2"], "answer": "Miso"},
        {"question": "What happened in Lisbon?", "category": 1, "evidence": ["D:2:1; D1:1"]},
        {"question": "No evidence?", "category": 5, "evidence": []},
    ],
}
AUDIT = [
    {"question": "What is Ann's cat called?", "cited_evidence": ["D1:2"], "correct_evidence": ["D1:1"]},
    {"question": "Another?", "cited_evidence": ["D1:2"], "correct_evidence": []},
]
MEMPALACE = [
    {
        "sample_id": "conv-26",
        "question": "What is Ann's cat called?",
        "evidence": ["D1:2"],
        "retrieved_ids": ["session_2"],
    }
]
REALTALK = {
    "session_1_date_time": "29.12.2023, 22:42:04",
    "session_1": [
        {"dia_id": "D1:1", "speaker": "Emi", "clean_text": "Hey!", "date_time": "29.12.2023, 22:42:04"},
        {"dia_id": "D1:2", "speaker": "Li", "clean_text": "I ski.", "date_time": "30.12.2023, 08:00:00"},
    ],
    "qa": [{"question": "Who skis?", "category": 1, "evidence": ["D1:2"]}],
}
BEAM_CHAT = [
    {
        "batch_number": 1,
        "turns": [
            [
                {
                    "role": "user",
                    "id": 0,
                    "time_anchor": "March-15-2024",
                    "content": "My sprint ends. ->-> 1,1",
                },
                {"role": "assistant", "id": 1, "content": "Noted."},
            ]
        ],
    },
    {"batch_number": 2, "turns": [[{"role": "user", "id": 2, "content": "Thanks."}]]},
]
BEAM_QUESTIONS = {
    "abstention": [{"question": "Unknown?"}],
    "information_extraction": [{"question": "When?", "source_chat_ids": [0]}],
    "knowledge_update": [{"question": "Now?", "source_chat_ids": {"original": [2], "updated": [0, 2]}}],
}


@pytest.fixture
def reader(monkeypatch):
    """The readers of the benchmark, which is no package."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import _conversations

    return _conversations


@pytest.fixture
def folder(tmp_path):
    """A folder with one conversation of LoCoMo, and what others say of it beside it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "26.json").write_text(json.dumps(LOCOMO))
    (tmp_path / "errors.json").write_text(json.dumps(AUDIT))
    (tmp_path / "theirs.json").write_text(json.dumps(MEMPALACE))
    return tmp_path


def test_locomo(reader, folder):
    """Turns have captions and dates; evidence is read as it is meant; questions without any are left out."""
    (conversation,) = reader.load(folder / "data")
    assert conversation.name == "26"
    assert [turn.text for turn in conversation.turns][1] == "Bob: Look! [a grey cat]"
    assert conversation.turns[2].created_at.isoformat() == "2023-03-01T20:00:00+00:00"
    assert [question.evidence for question in conversation.questions] == [("D1:2",), ("D2:1", "D1:1")]
    published = folder / "locomo10.json"
    published.write_text(json.dumps([{"sample_id": "conv-26", "conversation": LOCOMO, "qa": LOCOMO["qa"]}]))
    assert reader.load(published) == [conversation]


def test_an_audit_corrects_evidence(reader, folder):
    """A question of the audit has its corrected evidence beside the original; the others keep theirs."""
    (conversation,) = reader.with_audit(reader.load(folder / "data"), folder / "errors.json")
    assert [question.corrected for question in conversation.questions] == [("D1:1",), ("D2:1", "D1:1")]
    assert conversation.questions[0].evidence == ("D1:2",)


def test_realtalk(reader, tmp_path):
    """Each message has a time of its own."""
    (tmp_path / "Chat_1.json").write_text(json.dumps(REALTALK))
    (conversation,) = reader.load(tmp_path)
    assert [turn.text for turn in conversation.turns] == ["Emi: Hey!", "Li: I ski."]
    assert conversation.turns[1].created_at.day == 30


def test_beam(reader, tmp_path):
    """Batches are sessions; ids in lists and mappings are evidence; a question without any is left out."""
    chat = tmp_path / "1"
    (chat / "probing_questions").mkdir(parents=True)
    (chat / "chat.json").write_text(json.dumps(BEAM_CHAT))
    (chat / "probing_questions" / "probing_questions.json").write_text(json.dumps(BEAM_QUESTIONS))
    (conversation,) = reader.load(tmp_path)
    assert [(turn.id, turn.session, turn.text) for turn in conversation.turns] == [
        ("0", 1, "user: My sprint ends."),
        ("1", 1, "assistant: Noted."),
        ("2", 2, "user: Thanks."),
    ]
    assert conversation.turns[2].created_at.month == 3
    assert [(question.category, question.evidence) for question in conversation.questions] == [
        ("information_extraction", ("0",)),
        ("knowledge_update", ("2", "0")),
    ]


def test_the_benchmark_reports_all_of_it(reader, folder, capsys, monkeypatch):
    """One run shows recall of the original and of the corrected evidence, and another memory's published result beside it."""
    import locomo

    monkeypatch.setattr(locomo, "RESAMPLES", 20)
    arguments = ["--embedder", "hashed", "--mode", "hybrid", "--threads", "yes"]
    compared = ["--audit", str(folder / "errors.json"), "--mempalace", str(folder / "theirs.json")]
    kept = ["--save", str(folder / "kept.json")]
    assert locomo.main([str(folder / "data"), *arguments, *compared, *kept]) == 0
    shown = capsys.readouterr().out
    for line in (
        "evidence as corrected",
        "of MemPalace, as published, on 1 of these: 0.0; here 100.0",
        "4 single-hop",
    ):
        assert line in shown
    assert locomo.main([str(folder / "data"), *arguments, "--against", str(folder / "kept.json")]) == 0
    assert "against the other run" in capsys.readouterr().out
