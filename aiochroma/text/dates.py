"""The days that a question speaks of: "on July 12, 2022", "im Juli", "yesterday", "5月2日". Pure functions.

Only the languages whose dates are regular are read: English, German, French, Spanish, Italian, Portuguese, Dutch, Chinese,
Japanese and Korean, and ISO 8601. Anything else is not taken for a date; nothing is guessed. Days are those of UTC. A month
or a day without a year is that of any year.
"""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Period", "periods_in"]


class Period(NamedTuple):
    """A span of days, or of the same days of any year.

    Attributes:
        first: Its first day.
        last: Its last day.
        any_year: Whether the year was not said; ``first`` has the present one.
    """

    first: date
    last: date
    any_year: bool = False

    def spans(self, first_year: int, last_year: int) -> list[tuple[float, float]]:
        """Return when it begins and ends, in seconds since 1970; for each of the years where no year was said."""
        years = range(first_year, last_year + 1) if self.any_year else (self.first.year,)
        spans = []
        for year in years:
            first = _moved(self.first, year)
            last = _moved(self.last, year + self.last.year - self.first.year)
            spans.append((_seconds(first), _seconds(last) + _DAY_SECONDS))
        return spans


_DAY_SECONDS = 86_400
_MONTHS = (
    "january jan januar jänner janvier enero gennaio janeiro januari",
    "february feb februar février fevrier febrero febbraio fevereiro februari",
    "march mar märz maerz mars marzo março marco maart",
    "april apr avril abril aprile",
    "may mai mayo maggio maio mei",
    "june jun juni juin junio giugno junho",
    "july jul juli juillet julio luglio julho",
    "august aug août aout agosto augustus",
    "september sep sept septembre septiembre settembre setembro",
    "october oct oktober octobre octubre ottobre outubro okt",
    "november nov novembre noviembre novembro",
    "december dec dezember décembre decembre diciembre dicembre dezembro dez",
)
_MONTH_OF = {name: number for number, names in enumerate(_MONTHS, 1) for name in names.split()}
# These are other words as well: they count with a day, a year, or a word for "in" beside them only.
_ALSO_WORDS = frozenset(
    {"may", "mar", "march", "mars", "mai", "mei", "sep", "dec", "jan", "jun", "nov", "august", "marco"}
)
_SEASONS = {
    3: "spring frühling frühjahr printemps primavera lente",
    6: "summer sommer été verano estate verão zomer",
    9: "autumn fall herbst automne otoño autunno outono herfst",
    12: "winter hiver invierno inverno",
}
_SEASON_OF = {name: month for month, names in _SEASONS.items() for name in names.split()}
_DAYS_AGO = (
    (0, "today tonight heute aujourd'hui hoy oggi hoje vandaag"),
    (1, "yesterday gestern ayer ieri ontem gisteren"),
    (2, "vorgestern avant-hier anteayer anteontem eergisteren"),
)
_UNITS = {
    "day": "day days tag tage tagen jour jours día días dia dias giorno giorni dag dagen",
    "week": "week weeks woche wochen semaine semaines semana semanas settimana settimane weken",
    "month": "month months monat monate monaten mois mes meses mese mesi mês maand maanden",
    "year": "year years jahr jahre jahren an ans année años año anno anni ano anos jaar jaren",
}
_UNIT_OF = {name: unit for unit, names in _UNITS.items() for name in names.split()}
_WEEKDAYS = (
    "monday montag lundi lunes lunedì segunda-feira maandag",
    "tuesday dienstag mardi martes martedì terça-feira dinsdag",
    "wednesday mittwoch mercredi miércoles mercoledì quarta-feira woensdag",
    "thursday donnerstag jeudi jueves giovedì quinta-feira donderdag",
    "friday freitag vendredi viernes venerdì sexta-feira vrijdag",
    "saturday samstag samedi sábado sabato zaterdag",
    "sunday sonntag dimanche domingo domenica zondag",
)
_WEEKDAY_OF = {name: number for number, names in enumerate(_WEEKDAYS) for name in names.split()}


def _any(names: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, names), key=len, reverse=True))


_MONTH = rf"(?P<month>{_any(_MONTH_OF)})\b\.?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th|er|º|\.)?"
_YEAR = r"(?P<year>(?:19|20)\d\d)"
_OF = r"(?:\s+(?:of|de|del|di))?"
_IN = (
    r"(?:in|on|of|during|since|until|till|by|between|from|last|this|next|early|late|mid|im|seit|bis|vom|letzten|en|au|depuis|"
    r"de|del|"
    r"desde|hasta|nel|da|a|em|desde|até|sinds|tot|begin|eind)"
)
_AGO = r"(?P<count>\d{1,3}|an?|one|two|three|four|five|six)"
_COUNTS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
_LAST = r"(?:last|past|previous|letzte[nmrs]?|vorige[nmrs]?|vergangene[nmrs]?|vorig|afgelopen|scors[oa]|la)"

_ISO = re.compile(r"\b(?P<year>\d{4})[-/](?P<month>\d{1,2})(?:[-/](?P<day>\d{1,2}))?\b(?![-/])")
_DOTTED = re.compile(rf"\b(?P<day>\d{{1,2}})\.\s?(?P<month>\d{{1,2}})\.\s?{_YEAR}\b")
_MONTH_FIRST = re.compile(rf"\b{_MONTH}\s+{_DAY}\b(?!\d)(?:,?\s+{_YEAR}\b)?", re.IGNORECASE)
_DAY_FIRST = re.compile(rf"\b{_DAY}{_OF}\s+{_MONTH}(?:,?{_OF}\s+{_YEAR}\b)?", re.IGNORECASE)
_MONTH_YEAR = re.compile(rf"\b{_MONTH}(?:,?{_OF}\s+{_YEAR}\b)", re.IGNORECASE)
_MONTH_ALONE = re.compile(rf"\b(?P<in>{_IN}\s+)?{_MONTH}", re.IGNORECASE)
_SEASON = re.compile(
    rf"\b(?P<in>{_IN}\s+(?:the\s+|l')?|l')?(?P<season>{_any(_SEASON_OF)})\b(?:{_OF}\s+{_YEAR}\b)?",
    re.IGNORECASE,
)
_YEAR_ALONE = re.compile(rf"(?<![\d.,:/-]){_YEAR}(?![\d:/-]|[.,]\d)(?!\s*年)")
_EAST = re.compile(
    r"(?:(?P<year>\d{4})\s*[年년]\s*)?(?P<month>\d{1,2})\s*[月월](?:\s*(?P<day>\d{1,2})\s*[日号號일])?|(?P<only>\d{4})\s*[年년]"
)
_RELATIVE_DAY = {
    ago: re.compile(rf"(?<!\w)(?:{_any(names.split())})(?!\w)", re.IGNORECASE) for ago, names in _DAYS_AGO
}
_AGO_AFTER = re.compile(rf"\b{_AGO}\s+(?P<unit>{_any(_UNIT_OF)})\s+ago\b", re.IGNORECASE)
_AGO_BEFORE = re.compile(rf"\b(?:vor|il y a|hace)\s+{_AGO}\s+(?P<unit>{_any(_UNIT_OF)})\b", re.IGNORECASE)
_LAST_UNIT = re.compile(
    rf"\b{_LAST}\s+(?P<unit>{_any(_UNIT_OF)})\b|\b(?P<other>semaine|mois|an|année|semana|mes|mês|año|ano|settimana|mese|anno)\s+"
    r"(?:dernière|dernier|pasada|pasado|passada|passado|scorsa|scorso)\b",
    re.IGNORECASE,
)
_LAST_WEEKDAY = re.compile(rf"\b{_LAST}\s+(?P<weekday>{_any(_WEEKDAY_OF)})\b", re.IGNORECASE)
_PART_OF_DAY = re.compile(
    r"\bthis\s+(?P<today>morning|afternoon|evening)\b|\blast\s+night\b|\bhier\s+(?:soir|matin|après-midi)\b",
    re.IGNORECASE,
)
# German "hier" is "here": another word has to be French.
_HIER = re.compile(r"\bhier\b", re.IGNORECASE)
_FRENCH = re.compile(
    r"\b(?:[jdq]u?['\u2019]|(?:est-ce|ai|avons|avez|nous|vous|quelles?|que|quoi)\b)", re.IGNORECASE
)
_EAST_RELATIVE = (
    ("day", 1, re.compile(r"昨天|昨晚|昨夜|(?<!一)昨日|어제|어젯밤")),
    ("day", 2, re.compile(r"前天|一昨日|おととい|그저께|그제")),
    ("week", 1, re.compile(r"上周|上週|上星期|先週|지난주|지난\s주")),
    ("month", 1, re.compile(r"上个月|上個月|上月|先月|지난달|지난\s달")),
    ("year", 1, re.compile(r"去年|昨年|작년")),
)
_EAST_TODAY = re.compile(r"今天|今日|今晚|今夜|오늘")
_EAST_WORDS = re.compile(
    "|".join(["[月월年년]", _EAST_TODAY.pattern, *(one.pattern for _, _, one in _EAST_RELATIVE)])
)
_FOUR_DIGITS = re.compile(r"\d{4}")
_WORD = re.compile(r"[^\W\d_]+")
_TELLING = frozenset(
    word
    for names in (_MONTH_OF, _SEASON_OF, _WEEKDAY_OF, *(names.split() for _, names in _DAYS_AGO))
    for name in names
    for word in _WORD.findall(name)
) | {*_UNIT_OF, "morning", "afternoon", "evening", "night", "hier"}
"""Without one of these words, or a year, there is no date."""


def periods_in(question: str, now: float) -> list[Period]:
    """Find the days that a question speaks of.

    Args:
        question: Any text.
        now: The present moment, in seconds since 1970; "yesterday" is seen from it.

    Returns:
        The periods, each once. Of a date that is part of a longer one, only the longer one.
    """
    if not _may_speak_of_days(question):
        return []
    today = datetime.fromtimestamp(now, timezone.utc).date()
    found: dict[Period, None] = {}
    rest = question
    for pattern in _CALENDAR:
        for match in pattern.finditer(rest):
            period = _calendar(pattern, match, today)
            if period is not None:
                found[period] = None
                # What was read is no part of another date; the others stay where they are.
                rest = rest[: match.start()] + " " * len(match.group()) + rest[match.end() :]
    found.update(dict.fromkeys(_relative(rest, today)))
    return list(found)


def _may_speak_of_days(question: str) -> bool:
    """Tell the questions that surely speak of no days, which are most, in a tenth of the time."""
    return (
        _FOUR_DIGITS.search(question) is not None
        or not _TELLING.isdisjoint(_WORD.findall(question.lower()))
        or _EAST_WORDS.search(question) is not None
    )


_CALENDAR = (_ISO, _DOTTED, _EAST, _MONTH_FIRST, _DAY_FIRST, _MONTH_YEAR, _SEASON, _MONTH_ALONE, _YEAR_ALONE)


def _calendar(pattern: re.Pattern[str], match: re.Match[str], today: date) -> Period | None:
    said = match.groupdict()
    if said.get("only"):
        return _year(int(said["only"])) if int(said["only"]) else None
    if "season" in said:
        return _season(match, said, today)
    year = int(said["year"]) if said.get("year") else None
    if said.get("month") is None:
        return None if year is None else _year(year)
    month = _MONTH_OF.get(said["month"].lower()) or (int(said["month"]) if said["month"].isdigit() else 0)
    day = int(said["day"]) if said.get("day") else None
    if pattern is _MONTH_ALONE and said["month"].lower() in _ALSO_WORDS and not _is_month(match, said):
        return None
    return _days(year, month, day, today)


def _is_month(match: re.Match[str], said: dict[str, str | None]) -> bool:
    """Tell a month from another word of its spelling: written large, behind a word for "in"."""
    return bool(said["in"]) and match.group("month")[0].isupper()


def _season(match: re.Match[str], said: dict[str, str | None], today: date) -> Period | None:
    year, month = said.get("year"), _SEASON_OF[match.group("season").lower()]
    if not year and not said.get("in"):
        return None  # "The fall hurt", "l'estate" and so on.
    first = date(int(year) if year else today.year, month, 1)
    last = _last_of(first.year + (month == 12), (month + 1) % 12 + 1 if month == 12 else month + 2)
    return Period(first, last, not year)


def _days(year: int | None, month: int, day: int | None, today: date) -> Period | None:
    try:
        # The 29th of February of any year begins in a leap year.
        this_year = 2024 if (month, day) == (2, 29) else today.year
        first = date(this_year if year is None else year, month, day or 1)
    except ValueError:
        return None
    return Period(first, first if day else _last_of(first.year, month), year is None)


def _year(year: int) -> Period:
    return Period(date(year, 1, 1), date(year, 12, 31))


def _relative(question: str, today: date) -> list[Period]:
    found = [_back(today, "day", ago) for ago, pattern in _RELATIVE_DAY.items() if pattern.search(question)]
    for pattern in (_AGO_AFTER, _AGO_BEFORE):
        for match in pattern.finditer(question):
            written = match.group("count").lower()
            count = _COUNTS.get(written) or int(written)
            found.append(_back(today, _UNIT_OF[match.group("unit").lower()], count, around=True))
    units = [
        _UNIT_OF[(match.group("unit") or match.group("other")).lower()]
        for match in _LAST_UNIT.finditer(question)
    ]
    found += [_back(today, unit, 1) for unit in units if unit != "day"]
    for match in _LAST_WEEKDAY.finditer(question):
        days = (today.weekday() - _WEEKDAY_OF[match.group("weekday").lower()]) % 7 or 7
        found.append(_back(today, "day", days))
    found += [
        _back(today, "day", 0 if match.group("today") else 1) for match in _PART_OF_DAY.finditer(question)
    ]
    found += [
        _back(today, unit, count) for unit, count, pattern in _EAST_RELATIVE if pattern.search(question)
    ]
    if _HIER.search(question) and _FRENCH.search(question):
        found.append(_back(today, "day", 1))
    if _EAST_TODAY.search(question):
        found.append(Period(today, today))
    return list(dict.fromkeys(found))


def _back(today: date, unit: str, count: int, *, around: bool = False) -> Period:
    """Return the day, week, month or year that lies this many back; ``around`` a day, for a number that is rounded."""
    if unit == "day":
        day = today - timedelta(days=count)
        return Period(day, day)
    if unit == "week":
        if around:
            day = today - timedelta(weeks=count)
            return Period(day - timedelta(days=2), day + timedelta(days=2))
        monday = today - timedelta(days=today.weekday(), weeks=count)
        return Period(monday, monday + timedelta(days=6))
    if unit == "month":
        months = today.year * 12 + today.month - 1 - count
        first = date(max(1, months // 12), months % 12 + 1, 1)
        return Period(first, _last_of(first.year, first.month))
    return _year(max(1, today.year - count))


def _last_of(year: int, month: int) -> date:
    return date(year, month, monthrange(year, month)[1])


def _moved(day: date, year: int) -> date:
    """Return a day in another year of the calendar; the last of February where that has no 29th."""
    year = min(max(year, date.min.year), date.max.year)
    try:
        return day.replace(year=year)
    except ValueError:
        return date(year, 2, 28)


def _seconds(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=timezone.utc).timestamp()
