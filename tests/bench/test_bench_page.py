"""The page in a real browser: sorting, filtering, plot, details, keyboard, phone, both colour schemes; no
complaint, no request that leaves it."""

from __future__ import annotations

import csv
import io
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import Browser, Page
from made_up_records import made_up_runs, made_up_timings
from records import PHOTOS, run_of

from detection_zoo.benchmarks.report.figure_data import pareto_front
from detection_zoo.benchmarks.report.html_page import html_page
from detection_zoo.benchmarks.report.training_logs import TrainingLog
from detection_zoo.benchmarks.report.wide import Overview, WideLine, overview
from detection_zoo.benchmarks.spec import metric
from detection_zoo.zoo.manifest_files import load_manifests

V39, WRONG_LINK = "faster_rcnn_vovnet39_fpn_2x.vovnet", "mask_rcnn_vovnet57_fpn_2x.vovnet"
MANY, NUMBERS = 1000, itertools.count()
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def view() -> Overview:
    runs = made_up_runs(150)
    view = overview(
        load_manifests(), [*runs, runs[1].model_copy(update={"id": "20310101T000000Z-v39", "row": V39})]
    )
    view.kernels = [made_up_timings()]
    curves = ([10, 20, 30], [2.5, 1.5, 1.25], [0.02, 0.02, 0.002])
    view.trainings = {V39: [TrainingLog("night", *curves, "box_ap", (15, 30), (20.5, 31.25))]}
    view.classes = {"20310101T000000Z-v39": {"zebra": 81.25, "<b>cat</b>": 12.0}}
    view.pictures = {
        V39: [
            (
                "street",
                "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk"
                "YAAAAAYAAjCB0C8AAAAASUVORK5CYII=",
            )
        ]
    }
    return view


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, view: Overview) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "some.html").write_text(html_page(view), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tab(chromium: Browser) -> Iterator[Page]:
    page = Page(chromium)
    page.looked_at, page.address = None, ""
    yield page
    page.call("Page.close")


@pytest.fixture
def open_page(tab: Page, pages: Path) -> Iterator[Open]:
    """Opens a page in the one tab, and holds of each that it complained of nothing and asked for nothing but
    itself; a page that a test only looks at is not opened again for the next that does."""
    address = ""

    def check() -> None:
        assert tab.complaints() == []
        asked = {
            one.partition("#")[0] for one in tab.requests() if not one.startswith("data:")
        }  # in the page
        assert asked == {address}

    def open_it(name: str = "some.html", fragment: str = "", *, looks: bool = False, **how: object) -> Page:
        nonlocal address
        if address:
            check()
        wanted = (name, fragment, how) if looks else None
        if wanted is None or tab.looked_at != wanted:
            tab.forget()
            tab.looked_at = wanted
            tab.emulate(**how)
            tab.address = f"{(pages / name).as_uri()}?{next(NUMBERS)}"  # another one is another document
            tab.open(tab.address + fragment)
        address = tab.address
        return tab

    yield open_it
    check()


def shown(page: Page, column: str) -> list[str]:
    """Texts of a column, row by row, as far as rows are in the document."""
    place = page.run(
        "[...document.querySelectorAll('#table thead th')].findIndex(th => th.dataset.column ==="
        f" {json.dumps(column)})"
    )
    return page.run(
        "[...document.querySelectorAll('#table tbody tr[data-index]')].map(row =>"
        f" row.children[{place}].firstChild.textContent)"
    )


def status(page: Page) -> int:
    """How many lines the table says it shows."""
    return int(page.run("document.getElementById('status').textContent").split()[0])


def choose(page: Page, control: str, value: str) -> None:
    """Choose an option, as a person does."""
    page.run(
        f"(() => {{ const s = document.getElementById('{control}'); s.value = '{value}'; s.dispatchEvent(new"
        " Event('change')); })()"
    )


def best_first(view: Overview, name: str) -> list[str]:
    """Measured numbers of a quantity as the page must list them."""
    quantity = metric(name)
    values = sorted(
        (point.value for line in view.lines if line.kind == "measured" and (point := line.point(quantity))),
        reverse=quantity.better == "higher",
    )
    return [f"{value:.{quantity.digits}f}" for value in values]


def test_the_harness_notices_requests_and_complaints(chromium: Browser, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(
        "<img src='http://127.0.0.1:9/x.png'><script>console.error('said'); "
        "setTimeout(() => { throw new Error('thrown') })</script>"
    )
    page = Page(chromium).open((tmp_path / "bad.html").as_uri())
    page.settle()
    assert any("127.0.0.1" in request for request in page.requests())
    assert any("said" in text for text in page.complaints()) and any(
        "thrown" in text for text in page.complaints()
    )
    page.call("Page.close")


def test_the_page_could_not_ask_the_network_if_it_wanted(chromium: Browser, pages: Path) -> None:
    page = Page(chromium).open((pages / "some.html").as_uri())
    blocked = page.run(
        "new Promise(done => { document.addEventListener('securitypolicyviolation', event =>"
        " done(event.effectiveDirective)); fetch('http://127.0.0.1:9/').catch(() => {}); })"
    )
    assert blocked == "connect-src"
    page.call("Page.close")


def test_sorting_by_a_number_and_back(open_page: Open, view: Overview) -> None:
    page = open_page()
    assert shown(page, "box_ap")[:12] == best_first(view, "box_ap")[:12]
    page.click("[data-sort=time_ms]")
    assert page.run("document.querySelector('[data-column=time_ms]').ariaSort") == "ascending"
    assert page.run("document.querySelectorAll('[aria-sort=ascending], [aria-sort=descending]').length") == 1
    assert shown(page, "time_ms")[:12] == best_first(view, "time_ms")[:12]
    page.click("[data-sort=time_ms]")
    assert page.run("document.querySelector('[data-column=time_ms]').ariaSort") == "descending"
    assert shown(page, "time_ms")[:12] == best_first(view, "time_ms")[::-1][:12]


def test_measured_and_published_stay_apart_and_dashes_stand_last(open_page: Open) -> None:
    page = open_page()
    page.click("[data-sort=mask_ap]")  # nothing was measured: published ones come after every measured dash
    page.run("document.querySelector('#scroller').scrollTop = 1e9")
    page.wait_for(f"document.querySelector('#table tbody tr[data-index=\"{status(page) - 1}\"]')")
    assert set(shown(page, "kind")) == {"published"} and set(shown(page, "mask_ap")) == {"–"}
    assert "not reported" in page.run(
        "document.querySelector('#table tbody tr[data-index] td.number span').ariaLabel"
    )
    page.click("[data-sort=row]")
    names = shown(page, "row")
    assert names == sorted(names)


def matching(
    view: Overview, holds: Callable[[WideLine], bool], kinds: tuple[str, ...] = ("measured", "published")
) -> int:
    return sum(line.kind in kinds and holds(line) for line in view.lines)


def at_least(line: WideLine, name: str, limit: float) -> bool:
    point = line.point(metric(name))
    return point is not None and point.value >= limit


def test_filtering_by_words_limits_and_choices(open_page: Open, view: Overview) -> None:
    page = open_page()
    assert status(page) == matching(view, lambda line: True)
    page.press("/")
    page.write("VovNet39 faster")
    assert (
        status(page)
        == matching(view, lambda line: "vovnet39" in line.entry.name and "faster" in line.entry.name)
        > 0
    )
    page.run("document.getElementById('search').select()")
    page.write("box_ap>=40 time_ms<60")
    assert (
        status(page)
        == matching(
            view,
            lambda line: (
                at_least(line, "box_ap", 40)
                and line.point(metric("time_ms")) is not None
                and not at_least(line, "time_ms", 60)
            ),
        )
        > 0
    )
    page.run("document.getElementById('search').select()")
    page.write("ap>3 nothing-like-it")
    assert status(page) == 0 and "Unknown number: ap" in page.run(
        "document.getElementById('status').textContent"
    )
    assert "No line matches" in page.run("document.querySelector('#table tbody').textContent")
    page.click("#more summary")
    page.click("#clear")
    choose(page, "source", "vovnet")
    assert status(page) == matching(view, lambda line: line.entry.source == "vovnet")
    page.click("#kinds input[value='not measured']")
    page.click("#kinds input[value='published']")
    assert status(page) == matching(
        view, lambda line: line.entry.source == "vovnet", ("measured", "not measured")
    )


def test_made_up_lines_are_marked_and_can_be_hidden(open_page: Open, view: Overview) -> None:
    page = open_page(fragment="#q=random")
    assert status(page) == matching(view, lambda line: "random weights" in line.flags) > 0
    assert page.run(
        "[...document.querySelectorAll('#table tbody tr[data-index] .flag')].every(flag =>"
        " flag.textContent.includes('random weights'))"
    )
    assert page.run("document.querySelectorAll('#table td.untrusted').length") > 0
    page.click("#more summary")
    page.click("#trusted")
    assert status(page) == 0


def largest_setting(view: Overview) -> list[WideLine]:
    """The lines of the setting that the plot opens with."""
    settings: dict[tuple[str, ...], list[WideLine]] = {}
    for line in view.lines:
        if line.kind == "measured" and line.point(metric("box_ap")) and line.point(metric("time_ms")):
            settings.setdefault(line.setting, []).append(line)
    return max((lines for lines in settings.values() if sum(line.trusted for line in lines) > 1), key=len)


def test_the_plot_shows_one_setting_and_its_front(open_page: Open, view: Overview) -> None:
    page, lines = open_page(), largest_setting(view)
    assert page.run("document.querySelectorAll('#plot .point').length") == len(lines)
    trusted = [
        (line.point(metric("time_ms")).value, line.point(metric("box_ap")).value)
        for line in lines
        if line.trusted
    ]
    corners = page.run("document.querySelector('#plot .front').getAttribute('d')").count("V") + 1
    assert corners == len(pareto_front(trusted))
    assert page.run("document.querySelectorAll('#plot .bar-error').length") == 2 * len(lines)
    choose(page, "plot-setting", "every")
    assert page.run("document.querySelectorAll('#plot .point').length") > len(lines) and not page.run(
        "Boolean(document.querySelector('#plot .front'))"
    )
    assert "must not be compared" in page.run("document.getElementById('plot-note').textContent")


def test_pointing_at_a_dot_tells_it_and_a_click_opens_it(open_page: Open) -> None:
    page = open_page()
    last = page.run("document.querySelectorAll('#plot .point').length") - 1
    page.hover(f"#plot .point[data-index='{last}']")
    tip = page.run(
        "document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent"
    ).splitlines()
    assert tip[1].startswith("measured") and tip[2].startswith("Time ") and "Box AP" in tip[3]
    page.click(f"#plot .point[data-index='{last}']")
    assert (
        page.run("document.getElementById('details').open")
        and page.run("document.getElementById('details-title').textContent") == tip[0]
    )
    page.press("Escape")
    assert not page.run("document.getElementById('details').open")
    assert page.run("document.activeElement.dataset.index") == str(last)


def details_of_v39(open_page: Open) -> Page:
    page = open_page(fragment=f"#q={V39}&kinds=m", looks=True)
    if not page.run("document.getElementById('details').open"):
        page.click("#table tbody th button")
    return page


def test_details_show_pictures_and_ap_by_class(open_page: Open) -> None:
    page = details_of_v39(open_page)
    assert page.run("document.querySelector('.pictures img').alt") == f"Detections of {V39} in street"
    assert page.run("document.querySelector('.classes summary').textContent") == "2 classes"
    rows = "[...document.querySelectorAll('.classes tbody tr')].map(row => row.textContent)"
    assert page.run(rows) == ["zebra81.3", "<b>cat</b>12.0"]


def test_details_draw_the_curves_of_trainings(open_page: Open) -> None:
    page = details_of_v39(open_page)
    assert "Training night, 30 updates" in page.run("document.getElementById('details').textContent")
    drawn = page.run(
        "[...document.querySelectorAll('.training svg')].map(svg => [svg.ariaLabel,"
        " svg.querySelectorAll('circle').length, svg.textContent])"
    )
    assert [curve[:2] for curve in drawn] == [
        ["Loss of night, from 2.5 to 1.25", 3],
        ["Learning rate of night", 3],
        ["Box AP of night", 2],
    ]
    assert drawn[0][2] == "1.252.50update 10update 30" and drawn[2][2] == "20.531.3update 15update 30"


def test_details_tell_numbers_circumstances_weights_and_records(open_page: Open, view: Overview) -> None:
    page = details_of_v39(open_page)
    text = page.run("document.getElementById('details').textContent")
    line = next(line for line in view.lines if line.entry.name == V39 and line.kind == "measured")
    assert all(run.id in text for run in line.runs) and "made up by a test" in text
    for part in (
        "95 % interval",
        "Missing numbers",
        "Phases, median of each",
        "Model time, raw samples",
        "Environment",
        "Abacus 9",
        "torch 2.11.0",
        "The same row in every setting",
    ):
        assert part in text, part
    assert page.run("[...document.querySelectorAll('#details a')].some(a => a.href.includes('dropbox.com'))")
    assert page.run("document.querySelector('#details a[href^=runs]').getAttribute('href')").endswith(".json")
    page.click("#details .close")
    assert not page.run("document.getElementById('details').open")


def test_history_of_a_row_that_was_measured_again(open_page: Open, pages: Path) -> None:
    run = made_up_runs(1)[0]
    runs = [
        run.model_copy(
            update={
                "id": f"{run.id}x{hour}",
                "started": f"2030-02-01T0{hour}:00:00+00:00",
                "environment": run.environment.model_copy(update={"commit": f"{hour}" * 40}),
            }
        )
        for hour in range(3)
    ]
    (pages / "history.html").write_text(html_page(overview(load_manifests(), runs)), encoding="utf-8")
    page = open_page("history.html", "#kinds=m")
    page.click("#table tbody th button")
    assert "Model time (ms) by commit" in page.run("document.getElementById('details').textContent")
    assert {"0000000", "1111111", "2222222"} <= set(
        page.run("[...document.querySelectorAll('#details svg text')].map(text => text.textContent)")
    )


def test_a_wrong_link_is_told_and_cannot_be_followed(open_page: Open) -> None:
    page = open_page(fragment=f"#q={WRONG_LINK}&kinds=p")
    assert page.run(
        "[...document.querySelectorAll('#table tbody td .flag')].map(flag => flag.textContent)"
    ) == ["wrong link"]
    page.click("#table tbody th button")
    assert "the file is V-39" in page.run("document.getElementById('details').textContent")
    links = page.run("[...document.querySelectorAll('a')].map(a => a.href)")
    wrong = [url for spec in load_manifests().entry(WRONG_LINK).weights if spec.wrong for url in spec.urls]
    assert wrong and not set(wrong) & set(links) and any("V-57" in link for link in links)


def test_everything_by_keyboard(open_page: Open) -> None:
    page = open_page()
    page.press("/")
    assert page.run("document.activeElement.id") == "search"
    page.run("document.querySelector('#plot .point[tabindex=\"0\"]').focus()")
    page.press("ArrowRight", "ArrowRight")
    assert page.run("document.activeElement.dataset.index") == "2" and not page.run(
        "document.getElementById('tip').hidden"
    )
    page.press("Enter")
    assert page.run("document.getElementById('details').open") and page.run(
        "document.getElementById('details').contains(document.activeElement)"
    )
    page.press("Escape")
    page.run("document.getElementById('scroller').focus()")
    page.press("ArrowDown", "ArrowDown", "ArrowDown")
    assert page.run("document.activeElement.closest('tr').ariaRowIndex") == "4"  # the head is row 1
    page.press("End")
    assert page.run("document.activeElement.closest('tr').ariaRowIndex") == str(status(page) + 1)
    page.press("Enter")
    title = page.run("document.getElementById('details-title').textContent")
    page.press("Escape")
    assert page.run("document.activeElement.title") == title and page.run(
        "document.activeElement.closest('tr').ariaRowIndex"
    ) == str(status(page) + 1)
    page.press("Home", "Tab")
    assert page.run("document.activeElement.matches('#table a, footer *, body, #table button')")


def test_tab_reaches_every_control_in_order_and_shows_where_it_is(open_page: Open) -> None:
    page, seen = open_page(), []
    for _ in range(60):
        page.press("Tab")
        here = page.run(
            "(() => { const e = document.activeElement, s = getComputedStyle(e.querySelector('.ring') || e);"
            " return [e.id || e.dataset.sort || e.tagName, s.outlineStyle !== 'none' || s.stroke !== 'none'];"
            " })()"
        )
        if here[0] == "BODY":
            break
        assert here[1], f"{here[0]} has no focus ring"
        seen.append(here[0])
    wanted = [
        "theme",
        "search",
        "plot-setting",
        "plot-x",
        "plot-y",
        "plot-log",
        "scroller",
        "row",
        "box_ap",
        "time_ms",
    ]
    places = [seen.index(name) for name in wanted]
    assert places == sorted(places)


# the contrast ratio of WCAG 2 between each element's ink and what is painted behind it
CONTRAST = """(selector => {
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = colour => [.2126, .7152, .0722].reduce((sum, share, i) => sum + share * linear(colour[i] / 255), 0);
  const behind = e => {
    for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] === 1) return c; }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll(selector)].filter(e => e.getClientRects().length).map(e => {
    const style = getComputedStyle(e), ink = e instanceof SVGElement ? (style.fill === 'none' ? style.stroke : style.fill) : style.color;
    const [a, b] = [light(parts(ink)), light(behind(e))].sort((x, y) => y - x); return (a + .05) / (b + .05); });
})"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast_of_text_and_marks(open_page: Open, dark: bool) -> None:
    page = open_page(fragment="#kinds=mpn", dark=dark)
    choose(page, "plot-setting", "every")
    page.click("[data-sort=kind]")
    for selector in (
        "p",
        ".badge",
        ".flag",
        "#table td",
        "#table strong",
        "#table small",
        "#table th",
        "a",
        "button",
        "label span",
        "legend",
        "dt",
        "dd",
        "kbd",
        "summary",
    ):
        ratios = page.run(f"{CONTRAST}({json.dumps(selector)})")
        assert ratios or selector in ("a", ".flag"), f"{selector}: nothing to look at"
        assert min(ratios, default=21) >= 4.5, f"{selector}: {min(ratios):.2f}"
    marks = page.run(f"{CONTRAST}('.point.measured:not(.untrusted) .mark')") + page.run(
        f"{CONTRAST}('#plot svg text')"
    )
    assert marks and min(marks) >= 3
    page.press("End")
    assert light(page.run("getComputedStyle(document.documentElement).backgroundColor")) != dark


def light(colour: str) -> bool:
    return sum(int(part) for part in colour.strip("rgb()").split(",")[:3]) > 380


def test_the_colour_scheme_can_be_changed_and_stays_in_the_address(open_page: Open) -> None:
    page = open_page()
    assert light(page.run("getComputedStyle(document.documentElement).backgroundColor"))
    page.click("#theme")
    assert not light(
        page.run("getComputedStyle(document.documentElement).backgroundColor")
    ) and "theme=dark" in page.run("location.hash")
    again = open_page(fragment="#theme=dark")
    assert not light(again.run("getComputedStyle(document.documentElement).backgroundColor"))


def test_the_address_keeps_what_is_chosen(open_page: Open, view: Overview) -> None:
    page = open_page()
    page.click("[data-sort=time_ms]")
    page.press("/")
    page.write("vovnet")
    page.click("#plot-log")
    chosen = status(page), shown(page, "time_ms")
    again = open_page(fragment=page.run("location.hash"))
    assert (status(again), shown(again, "time_ms")) == chosen
    assert again.run("document.getElementById('plot-log').checked")
    assert (
        open_page(fragment="#sort=nonsense&x=nonsense").run(
            "document.querySelector('[data-column=box_ap]').ariaSort"
        )
        == "descending"
    )


def test_on_a_phone(open_page: Open) -> None:
    page = open_page(width=390, height=844, phone=True)
    assert page.run("document.documentElement.scrollWidth") <= 390
    assert page.run(
        "document.querySelector('#scroller').scrollWidth > document.querySelector('#scroller').clientWidth"
    )
    assert page.run("document.querySelector('#plot svg').getBoundingClientRect().width") <= 390
    controls = (
        "[...document.querySelectorAll('button, select, input[type=search], summary, label.check, fieldset"
        " label')]"
    )
    assert (
        page.run(f"{controls}.filter(e => e.offsetParent && e.offsetHeight < 24).map(e => e.outerHTML)") == []
    )
    page.click("#table tbody th button")
    box = page.run(
        "(() => { const b = document.getElementById('details').getBoundingClientRect(); return [b.left,"
        " b.width]; })()"
    )
    assert box == [0, 390] and page.run("document.querySelector('#details').scrollWidth") <= 390


def test_a_thousand_records_stay_fluent(
    open_page: Open, pages: Path, record_property: Callable[[str, object], None]
) -> None:
    view = overview(load_manifests(), made_up_runs(MANY))
    (pages / "many.html").write_text(html_page(view), encoding="utf-8")
    page, times = open_page("many.html"), {}
    assert len(view.runs) == MANY and status(page) == matching(view, lambda line: True) > 700
    steps = {
        "sort": "document.querySelector('[data-sort=time_ms]').click()",
        "scroll": "document.querySelector('#scroller').scrollTop = 20000",
        "filter": (
            "(() => { const s = document.getElementById('search'); s.value = 'resnet50'; s.dispatchEvent(new"
            " Event('input')); })()"
        ),
        "details": "document.querySelector('#table tbody th button').click()",
    }
    for name, step in steps.items():
        start = time.perf_counter()
        page.run(step)
        page.settle()
        times[name] = round((time.perf_counter() - start) * 1e3)
        assert page.run("document.querySelectorAll('#table tbody tr').length") < 80, (
            f"after {name}: rows out of sight are in the document"
        )
    record_property("milliseconds", json.dumps(times))
    print(
        f"{MANY} made-up records, {page.run('document.getElementById(`data`).textContent.length') / 1e6:.1f}"
        f" MB; ms to the next frame: {times}"
    )
    assert page.run("document.getElementById('details').open") and max(times.values()) < 5000, times
    assert shown(page, "row") and all("resnet50" in name for name in shown(page, "row"))


def test_a_page_without_records(open_page: Open, pages: Path) -> None:
    view = overview(load_manifests(), [], ["broken.json: the record is cut short"])
    (pages / "none.html").write_text(html_page(view), encoding="utf-8")
    page = open_page("none.html")
    assert "No records yet" in page.run("document.getElementById('nothing').textContent") and not page.run(
        "document.getElementById('nothing').hidden"
    )
    assert status(page) == matching(view, lambda line: True, ("published",))
    assert "cut short" in page.run("document.getElementById('problems').innerText")
    page.click("#kinds input[value='published']")
    assert status(page) == 0 and "No line that matches" in page.run(
        "document.getElementById('plot').textContent"
    )


def test_text_of_records_is_never_markup(open_page: Open, pages: Path) -> None:
    evil = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"
    data = PHOTOS.model_copy(update={"name": evil})
    run, failed = made_up_runs(1)[0], run_of(V39, {}, status="failed", stage=evil, reason=evil)
    runs = [run.model_copy(update={"row": V39, "notes": [evil], "data": data}), failed]
    (pages / "evil.html").write_text(html_page(overview(load_manifests(), runs)), encoding="utf-8")
    page = open_page("evil.html", "#kinds=m")
    page.click("#table tbody th button")
    assert page.run("document.getElementById('details').textContent").count("<img") >= 3
    assert page.run("window.broken === undefined && document.querySelectorAll('img').length === 0")


def test_operators_stand_beside_the_peers(open_page: Open) -> None:
    page = open_page(looks=True)
    rows = page.run(
        "[...document.querySelectorAll('#kernels tbody tr')].map(row => [...row.children].map(cell =>"
        " cell.textContent))"
    )
    assert [row[0] for row in rows] == [case.name for case in made_up_timings().cases]
    assert (
        rows[0][3].startswith(f"{made_up_timings().cases[0].ratio:.2f} (")
        and rows[3][2:4] == ["–", "–"]
        and "differs from the reference" in rows[3][5]
    )


def test_table_semantics(open_page: Open) -> None:
    page = open_page(looks=True)
    assert page.run("document.querySelector('#table').ariaRowCount") == str(status(page) + 1)
    rows = page.run(
        "[...document.querySelectorAll('#table tbody tr[data-index]')].map(row => Number(row.ariaRowIndex))"
    )
    assert rows == list(range(2, 2 + len(rows)))
    assert page.run(
        "[...document.querySelectorAll('#table tbody tr[data-index]')].every(row =>"
        " row.querySelectorAll('th[scope=row]').length === 1)"
    )
    assert page.run("[...document.querySelectorAll('#table thead th')].every(th => th.scope === 'col')")
    assert page.run(
        "[...document.querySelectorAll('input, select')].every(control => control.labels.length > 0)"
    )
    assert page.run(
        "[...document.querySelectorAll('button, #plot .point')].every(b => (b.ariaLabel ||"
        " b.textContent).trim().length > 0)"
    )
    assert (
        page.run("document.documentElement.lang") == "en"
        and page.run("document.querySelectorAll('h1').length") == 1
    )


def test_the_page_opens_on_measured_detectors(open_page: Open) -> None:
    page = open_page(looks=True)
    assert page.run("document.getElementById('plot-setting').selectedOptions[0].textContent").startswith(
        "measured"
    )
    assert set(shown(page, "kind")[:5]) == {"measured"}


def test_points_are_labelled_by_row(open_page: Open, view: Overview) -> None:
    page = open_page(looks=True)
    names = page.run("[...document.querySelectorAll('#plot .name')].map(name => name.textContent)")
    assert names and set(names) <= {line.entry.name for line in largest_setting(view)}
    inside = page.run(
        "(() => { const box = document.querySelector('#plot svg').getBoundingClientRect();"
        " return [...document.querySelectorAll('#plot .name')].every(name => { const at ="
        " name.getBoundingClientRect(); return at.left >= box.left - 1 && at.right <= box.right + 1; }); })()"
    )
    assert inside


def test_long_names_are_not_cut(open_page: Open) -> None:
    page = open_page(fragment="#q=fast_rcnn_resnext101_64x4d&kinds=mpn")
    assert status(page) > 2
    assert page.run(
        "[...document.querySelectorAll('#table tbody th strong')].every(name => name.scrollWidth <="
        " name.clientWidth + 1 && name.getBoundingClientRect().bottom <="
        " name.closest('button').getBoundingClientRect().bottom + 1)"
    )


def test_each_line_has_weights_licence_and_a_command(open_page: Open) -> None:
    page = open_page(fragment=f"#q={V39}&kinds=p")
    assert shown(page, "licence") == ["not stated"] and shown(page, "weights") == ["weights"]
    copied = page.run(
        "new Promise(done => { document.addEventListener('copy', () =>"
        " done(String(document.activeElement.value || getSelection())));"
        " Object.defineProperty(navigator, 'clipboard', { value: { writeText: async text => done(text) } });"
        " document.querySelector('#table .copy').click(); })"
    )
    assert copied == f"python bench.py run {V39} --weights published"
    page.run("document.querySelector('#table .copy').click()")
    assert not page.run("document.getElementById('details').open"), "copying opens nothing"


def test_csv_holds_what_is_filtered(open_page: Open, view: Overview) -> None:
    page = open_page(fragment="#source=vovnet")
    text = page.run(
        "new Promise(done => { URL.createObjectURL = blob => { blob.text().then(done); return '#'; };"
        " document.getElementById('csv').click(); })"
    )
    rows = list(csv.DictReader(io.StringIO(text)))
    wanted = [line for line in view.lines if line.entry.source == "vovnet" and line.kind != "not measured"]
    assert len(rows) == len(wanted) == status(page)
    published = {
        (row["row"], float(row["box_ap (%)"]))
        for row in rows
        if row["numbers"] == "published" and row["box_ap (%)"]
    }
    assert (V39, 39.8) in published
    assert all(row["licence"] for row in rows)
