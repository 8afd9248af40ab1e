"""The console in a real browser, over the real archive: what a person sees and does."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import IMAGE, PATIENCE, TOKEN, Archive, Pictures

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]  # the first one starts all of it

TIME = PATIENCE * 1000  # playwright counts milliseconds
WIDTHS = (1280, 390)
STRANGE = '<img src=x onerror="document.title=1"> & "quotes" ' + "a-very-long-word" * 40


@pytest.fixture
def page(chromium: "Browser", archive: Archive, screenshots: Path, request: pytest.FixtureRequest) -> "Iterator[Page]":
    """A page of somebody who has signed in; what the browser complains about fails the test."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(TIME)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    # A picture that cannot be had is a 404, and told in the page.
    page.on(
        "console",
        lambda message: (
            complaints.append(message.text) if message.type == "error" and "404" not in message.text else None
        ),
    )
    page.goto(f"{archive.url}/sign-in")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("main").get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Sign out").wait_for()
    yield page
    page.screenshot(path=screenshots / f"end-of-{request.node.name}.png", full_page=True)  # also where it has failed
    context.close()
    assert complaints == []


def look_for(page: "Page", key: str) -> None:
    page.get_by_label("URL of an image, or a text").fill(key)
    page.get_by_role("button", name="Look", exact=True).click()
    page.get_by_role("heading", level=1).wait_for()


def test_a_new_image_goes_from_oov_to_hit_on_the_page(
    page: "Page", archive: Archive, pictures: Pictures, screenshots: Path
) -> None:
    url, other = pictures.put("new.jpg"), pictures.put("other.jpg")
    for key in (url, other):
        look_for(page, key)
        view = page.get_by_role("region", name=IMAGE.view)
        view.locator(".status.OOV").wait_for()
        page.screenshot(path=screenshots / "oov.png", full_page=True)
        view.get_by_role("button", name="Ask for it").click()
        page.get_by_text("Asked for").wait_for()
        # 1. nobody loads the page again: it turns into a hit by itself, and says so to who does not see it
        page.get_by_role("region", name=IMAGE.view).locator(".status.HIT").wait_for()
        assert "HIT" in page.get_by_role("region", name=IMAGE.view).inner_text()
    # 2. a search finds the other one, and pictures come from the console alone
    page.reload()
    page.get_by_role("link", name=url).wait_for()
    sources = page.locator("main img").evaluate_all("all => all.map(each => each.src)")
    assert len(sources) == 2
    assert all(each.startswith(f"{archive.url}/picture?") for each in sources)
    page.wait_for_function("[...document.querySelectorAll('main img')].every(each => each.naturalWidth > 0)")
    page.screenshot(path=screenshots / "hit.png", full_page=True)
    # 3. both are among the newest items, and what was looked up is counted
    page.goto(archive.url)
    newest = page.get_by_role("region", name="Newest items")
    for key in (url, other):
        item = newest.get_by_role("listitem").filter(has=page.get_by_role("heading", name=key))
        item.locator(".status.HIT").wait_for()
    page.locator("#encoders").get_by_text("2 of 2").wait_for()


def test_a_dead_letter_is_retried_from_the_page(
    page: "Page", archive: Archive, pictures: Pictures, screenshots: Path
) -> None:
    url = pictures.url("late.jpg")
    look_for(page, url)
    page.get_by_role("button", name="Ask for it").click()
    view = page.get_by_role("region", name=IMAGE.view)
    view.locator(".status.FAILED").wait_for()
    view.get_by_text("the server answers 404").wait_for()
    # 1. it is a dead letter, which stays while the cause does
    page.goto(archive.url)
    letters = page.get_by_role("region", name="Newest dead letters")
    row = letters.get_by_role("row").filter(has_text=url)
    row.get_by_text("NotFound").wait_for()
    row.locator(".status.FAILED").wait_for()
    page.screenshot(path=screenshots / "dead-letter.png", full_page=True)
    # 2. the cause is mended, and the letter is sent again
    pictures.put("late.jpg")
    notice = page.locator(".notice").first
    row.get_by_role("button", name="Retry").click()
    notice.wait_for()
    while "That did not work" in notice.inner_text():  # a busy server did not answer in time; the test has a time-out
        row.get_by_role("button", name="Retry").click()
        notice.wait_for()
    assert "1 request sent again" in notice.inner_text()
    row.locator(".status.HIT").wait_for()
    page.screenshot(path=screenshots / "retried.png", full_page=True)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_themes_are_whole_at_every_width_and_hold_no_barriers(
    theme: str, page: "Page", archive: Archive, pictures: Pictures, axe: str, screenshots: Path
) -> None:
    look_for(page, f"{STRANGE} {theme}")
    page.get_by_role("button", name="Ask for it").click()
    page.locator(".status.HIT").first.wait_for()
    # 1. the system's theme, until somebody chooses another
    page.emulate_media(color_scheme="dark" if theme == "light" else "light")
    other = background(page)
    page.get_by_label("Theme").select_option(theme)
    assert background(page) != other
    page.emulate_media(color_scheme=theme)
    chosen = background(page)
    page.get_by_label("Theme").select_option("system")
    assert background(page) == chosen
    # 2. every page at every width: nothing sticks out, nothing bars the way
    for name, path in (("overview", "/"), ("item", f"/item?key={pictures.put('new.jpg')}"), ("sign-in", "/sign-in")):
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            page.goto(archive.url + path)
            if name == "overview":
                page.locator("#newest li").first.wait_for()
                page.locator(".plot .main-svg").first.wait_for()  # a chart that is drawn
            assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
            page.evaluate(axe)
            found = page.evaluate("axe.run().then(found => found.violations)")
            assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []
            page.screenshot(path=screenshots / f"{name}-{theme}-{width}.png", full_page=True)
    # 3. a stranger's text is text
    page.goto(archive.url)
    page.get_by_role("heading", name="<img src=x onerror=").first.wait_for()
    assert "Console" in page.title()


def background(page: "Page") -> str:
    """The page's colour."""
    found: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return found


def test_who_has_not_signed_in_sees_all_and_changes_nothing(chromium: "Browser", archive: Archive) -> None:
    page = chromium.new_page()
    page.goto(archive.url)
    page.locator("#newest li").first.wait_for(timeout=TIME)
    assert page.get_by_role("button", name="Retry").count() == 0
    page.close()
    for path in ("ask", "retry"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(
                f"{archive.url}/{path}", data=b"csrf=x&view=v&key=k&reason=NotFound", timeout=PATIENCE
            )


def test_a_part_that_is_away_is_told_of_and_the_page_stays(page: "Page", archive: Archive) -> None:
    page.goto(archive.url)
    parts = page.get_by_role("list", name="Parts")
    parts.get_by_role("listitem").filter(has_text="Retina answers").wait_for()
    archive.retina.stop()  # the last test: it is not started again
    parts.get_by_role("listitem").filter(has_text="Retina away").wait_for()
    page.get_by_role("heading", name="Newest items").wait_for()
