"""The days that questions speak of."""

from __future__ import annotations

from datetime import date, datetime, timezone

import pytest
from text_hits import search

from aiochroma.text.dates import periods_in
from aiochroma.text.index import IndexedText, TextIndex

NOW = datetime(2026, 11, 26, 12, tzinfo=timezone.utc).timestamp()  # A Thursday.


@pytest.mark.parametrize(
    ("question", "first", "last"),
    [
        ("What did she do on July 12, 2022?", date(2022, 7, 12), date(2022, 7, 12)),
        ("the 21st of February 2020", date(2020, 2, 21), date(2020, 2, 21)),
        ("2022-07-12", date(2022, 7, 12), date(2022, 7, 12)),
        ("am 12. Juli 2022", date(2022, 7, 12), date(2022, 7, 12)),
        ("am 12.07.2022", date(2022, 7, 12), date(2022, 7, 12)),
        ("le 12 juillet 2022", date(2022, 7, 12), date(2022, 7, 12)),
        ("el 12 de julio de 2022", date(2022, 7, 12), date(2022, 7, 12)),
        ("2022年5月2日", date(2022, 5, 2), date(2022, 5, 2)),
        ("2022년 5월 2일", date(2022, 5, 2), date(2022, 5, 2)),
        ("in July 2022", date(2022, 7, 1), date(2022, 7, 31)),
        ("summer 2021", date(2021, 6, 1), date(2021, 8, 31)),
        ("winter of 2021", date(2021, 12, 1), date(2022, 2, 28)),
        ("in 2021", date(2021, 1, 1), date(2021, 12, 31)),
        ("yesterday", date(2026, 11, 25), date(2026, 11, 25)),
        ("Was war gestern?", date(2026, 11, 25), date(2026, 11, 25)),
        ("昨天说了什么", date(2026, 11, 25), date(2026, 11, 25)),
        ("last week", date(2026, 11, 16), date(2026, 11, 22)),
        ("letzte Woche", date(2026, 11, 16), date(2026, 11, 22)),
        ("last month", date(2026, 10, 1), date(2026, 10, 31)),
        ("last Friday", date(2026, 11, 20), date(2026, 11, 20)),
        ("two weeks ago", date(2026, 11, 10), date(2026, 11, 14)),
        ("vor 3 Tagen", date(2026, 11, 23), date(2026, 11, 23)),
        ("What did I say this morning?", date(2026, 11, 26), date(2026, 11, 26)),
        ("Where were we last night?", date(2026, 11, 25), date(2026, 11, 25)),
        ("hier soir", date(2026, 11, 25), date(2026, 11, 25)),
        ("Qu'ai-je dit hier ?", date(2026, 11, 25), date(2026, 11, 25)),
        ("l'année dernière", date(2025, 1, 1), date(2025, 12, 31)),
        ("el año pasado", date(2025, 1, 1), date(2025, 12, 31)),
        ("l'anno scorso", date(2025, 1, 1), date(2025, 12, 31)),
        ("前天说了什么", date(2026, 11, 24), date(2026, 11, 24)),
        ("一昨日は", date(2026, 11, 24), date(2026, 11, 24)),
        ("昨夜", date(2026, 11, 25), date(2026, 11, 25)),
        ("今日", date(2026, 11, 26), date(2026, 11, 26)),
        ("上星期", date(2026, 11, 16), date(2026, 11, 22)),
        ("지난주에 뭐라고 했어?", date(2026, 11, 16), date(2026, 11, 22)),
        ("지난달", date(2026, 10, 1), date(2026, 10, 31)),
    ],
)
def test_dates_are_read(question, first, last):
    """Days, months, seasons and years, and those that are seen from today."""
    (period,) = periods_in(question, NOW)
    assert (period.first, period.last, period.any_year) == (first, last, False)


@pytest.mark.parametrize(
    "question", ["on 12 July", "in March", "im Mai", "5月2日", "in the summer", "29 February"]
)
def test_dates_without_a_year_are_those_of_any_year(question):
    """They span the same days of each year that is looked at."""
    (period,) = periods_in(question, NOW)
    assert period.any_year
    assert len(period.spans(2020, 2026)) == 7


@pytest.mark.parametrize(
    "question",
    [
        "may I march on?",
        "The fall hurt.",
        "port 2022:80",
        "version 2.2021",
        "Was ist hier?",
        "Wer ist quer durch den Ort hier gelaufen?",
        "Good morning",
        "",
        "1/2",
    ],
)
def test_what_is_no_date_is_none(question):
    """Words that are spelled like months, and numbers that are no years."""
    assert periods_in(question, NOW) == []


def test_both_ends_of_a_span_are_read():
    """Also where one is spelled like another word."""
    march, may = periods_in("between March and May 2021", NOW)
    assert (march.first.month, march.any_year) == (5, False)
    assert (may.first.month, may.any_year) == (3, True)


def test_a_date_finds_what_was_remembered_then():
    """Days near it count less, those after it more than those before; one that nothing is near says nothing."""
    index = TextIndex(":memory:")
    days = {"before": 10, "then": 12, "after": 15, "later": 300}
    index.upsert(
        "n",
        [
            IndexedText(id, "we met anna", None, created=datetime(2022, 7, 1).timestamp() + day * 86_400)
            for id, day in days.items()
        ],
    )
    found = search(index, "n", "whom did we meet on July 13, 2022? anna?", 4, now=NOW)
    assert [hit.id for hit in found][:3] == ["then", "after", "before"]
    without, with_far_date = (
        search(index, "n", f"anna {date}", 1, now=NOW)[0].score for date in ("", "in July 1999")
    )
    assert with_far_date <= without


@pytest.mark.parametrize(
    "question", ["until 9999-12-31", "9999-12", "9999年", "0000年", "0000-05-01", "in winter"]
)
def test_the_calendars_ends_are_no_end_of_a_search(question):
    """Dates at the edge of what the calendar knows are read, or are none; memories may have been made there too."""
    index = TextIndex(":memory:")
    for moment in (datetime.min, datetime.max):
        made = moment.replace(tzinfo=timezone.utc).timestamp()
        index.upsert("n", [IndexedText(str(moment), "The card ends.", created=made)])
        assert search(index, "n", f"Which card ends {question}?", 5)
