"""Who may see and change what, and what a stranger's page or text can do."""

import re
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

from embark.settings import Settings
from embark.web_console.access import MOST_SESSIONS, SESSION_SECONDS, TRIES, Access, TooManyTries
from embark.web_console.app import COOKIE, FORM_BYTES, ConsoleApp, ours
from embark.web_console.guard import LOOPBACK
from embark.web_console.running import check_listening, hosts_of
from serving.transport import TransportRefused
from tests.embark.web_console.fakes import EVIL, IMAGE_VIEW, FakeActions, FakeObserved, FakeSource

TOKEN = "sixteen-characters-or-more"  # noqa: S105


@asynccontextmanager
async def source() -> Any:
    yield FakeSource()


def client_of(access: Access, actions: FakeActions | None = None) -> TestClient:
    app = ConsoleApp(
        FakeObserved(),  # type: ignore[arg-type]
        actions or FakeActions(),  # type: ignore[arg-type]
        access,
        source,
        hosts=LOOPBACK,
        secure=False,
    )
    return TestClient(app.starlette, base_url="http://127.0.0.1:8080", follow_redirects=False)


@pytest.fixture
def actions() -> FakeActions:
    return FakeActions()


@pytest.fixture
def anybody(actions: FakeActions) -> Iterator[TestClient]:
    with client_of(Access(TOKEN, open_to_read=True), actions) as client:
        yield client


@pytest.fixture
def operator(anybody: TestClient) -> TestClient:
    answer = anybody.post("/sign-in", data={"token": TOKEN, "to": "/"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    return anybody


def csrf(client: TestClient) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]+)"', client.get("/").text)
    assert found
    return found[1]


# ── signing in ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_cookie_is_kept_from_scripts_and_other_sites(anybody: TestClient) -> None:
    cookie = anybody.post("/sign-in", data={"token": TOKEN, "to": "/"}).headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert TOKEN not in cookie


def test_a_wrong_token_opens_nothing(anybody: TestClient) -> None:
    for wrong in ("", TOKEN[:-1], TOKEN + "x", "ünïcode" * 3):
        answer = anybody.post("/sign-in", data={"token": wrong})
        assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
        assert "This is not the token." in answer.text
    assert "Sign out" not in anybody.get("/").text


def test_too_many_wrong_tokens_close_the_door_for_a_minute() -> None:
    now = [0.0]
    access = Access(TOKEN, open_to_read=True, clock=lambda: now[0])
    for _ in range(TRIES):
        assert access.sign_in("wrong") is None
    with pytest.raises(TooManyTries):
        access.sign_in(TOKEN)
    with client_of(access) as client:
        answer = client.post("/sign-in", data={"token": TOKEN})
        assert (answer.status_code, "Too many wrong tokens" in answer.text) == (429, True)
    now[0] = 61.0
    assert access.sign_in(TOKEN) is not None


def test_sessions_end_and_are_bounded() -> None:
    now = [0.0]
    access = Access(TOKEN, open_to_read=True, clock=lambda: now[0])
    names = [session.name for _ in range(MOST_SESSIONS + 1) if (session := access.sign_in(TOKEN))]
    assert access.session(names[0]) is None
    assert access.session(names[1]) is not None
    access.sign_out(names[1])
    assert access.session(names[1]) is None
    now[0] = SESSION_SECONDS
    assert access.session(names[2]) is None


def test_without_a_token_nobody_signs_in_with_an_empty_one() -> None:
    access = Access("", open_to_read=True)
    assert not access.has_token
    assert access.sign_in("") is None


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("/item?key=a", "/item?key=a"),
        ("//evil.example/x", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("/x\r\nSet-Cookie: a=b", "/"),
        ("", "/"),
    ],
)
def test_signing_in_leads_nowhere_else(to: str, expected: str) -> None:
    assert ours(to) == expected


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_where_reading_needs_the_token_nothing_is_told_without() -> None:
    with client_of(Access(TOKEN, open_to_read=False)) as client:
        for path in ("/", "/item?key=a"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["location"].startswith("/sign-in?to=")) == (303, True)
        assert client.get("/api/state").status_code == 401
        client.post("/sign-in", data={"token": TOKEN})
        assert client.get("/").status_code == 200
        assert client.get("/api/state").json()["project"] == "shop"


def test_a_read_only_page_has_no_button_that_changes_anything(anybody: TestClient) -> None:
    for path in ("/", f"/item?key={EVIL}"):
        page = anybody.get(path).text
        assert 'method="post"' not in page
    with client_of(Access("", open_to_read=True)) as client:
        assert "read-only" in client.get("/").text
        assert "started without a token" in client.get("/sign-in").text


def test_texts_of_strangers_are_escaped_everywhere(anybody: TestClient) -> None:
    for path in ("/", f"/item?{'key=' + EVIL}", "/sign-in?to=" + EVIL, "/" + EVIL):
        page = anybody.get(path).text
        assert "<script>" not in page
        assert "<img src=x" not in page
        assert 'x" onmouseover="' not in page
    assert "&lt;script&gt;" in anybody.get("/").text
    assert anybody.get("/api/state").headers["content-type"] == "application/json"


def test_pages_run_no_script_but_ours_and_no_frame_holds_them(anybody: TestClient) -> None:
    for path in ("/", "/item?key=a", "/sign-in", "/nowhere", "/static/console.js"):
        answer = anybody.get(path)
        policy = dict(each.split(" ", 1) for each in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["img-src"] == policy["form-action"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"<script(?![^>]*src=)|\son\w+=\"|<style|javascript:", answer.text.partition("</html>")[0])
    assert anybody.get("/").headers["cache-control"] == "no-store"


def test_a_name_that_is_not_ours_is_refused(anybody: TestClient) -> None:
    for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "[::1"):
        assert anybody.get("/", headers={"Host": host}).status_code == 403
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8080", "[::1]:8080"):
        assert anybody.get("/health", headers={"Host": host}).status_code == 200


def test_pictures_are_only_those_of_our_pages_and_small_jpegs(anybody: TestClient) -> None:
    page = anybody.get("/").text
    (address, *_) = re.findall(r'src="(/picture[^"]+)"', page)
    address = address.replace("&amp;", "&")
    answer = anybody.get(address)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    assert answer.content[:3] == b"\xff\xd8\xff"
    assert anybody.get(address.replace("key=", "key=x")).status_code == 403
    assert anybody.get("/picture?key=http://10.0.0.1/&sign=").status_code == 403
    assert anybody.get("/picture?key=http://10.0.0.1/&sign=ü").status_code == 403
    assert 'src="http' not in page


def test_who_has_not_signed_in_cannot_have_the_console_download_what_nobody_archived(anybody: TestClient) -> None:
    unknown = anybody.get("/item?key=http://unknown.example/a.jpg&kind=image").text
    assert "OOV" in unknown
    assert "/picture" not in unknown


# ── changing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_operator_asks_and_retries(operator: TestClient, actions: FakeActions) -> None:
    mark = csrf(operator)
    answer = operator.post("/ask", data={"csrf": mark, "view": IMAGE_VIEW, "key": "http://a.example/x.jpg"})
    assert answer.headers["location"] == "/item?key=http%3A%2F%2Fa.example%2Fx.jpg&kind=image"
    assert "done: ask" in operator.get("/").text
    assert "done: ask" not in operator.get("/").text  # told once
    operator.post("/retry", data={"csrf": mark, "position": "t:0:1"})
    operator.post("/retry", data={"csrf": mark, "view": "v", "reason": "NotFound"})
    assert actions.done == [
        ("ask", IMAGE_VIEW, "http://a.example/x.jpg"),
        ("retry", {"csrf": mark, "position": "t:0:1"}),
        ("retry", {"csrf": mark, "view": "v", "reason": "NotFound"}),
    ]


def test_what_does_not_work_is_told_in_a_sentence(operator: TestClient, actions: FakeActions) -> None:
    actions.broken = True
    mark = csrf(operator)
    assert operator.post("/ask", data={"csrf": mark, "view": IMAGE_VIEW, "key": "k"}).status_code == 303
    assert "That did not work: EmbArk does not answer" in operator.get("/").text


@pytest.mark.parametrize("path", ["/ask", "/retry", "/sign-out"])
def test_nothing_changes_without_a_session_and_the_form_of_that_session(
    path: str, operator: TestClient, actions: FakeActions
) -> None:
    mark = csrf(operator)
    form = {"view": IMAGE_VIEW, "key": "k", "reason": "NotFound"}
    for wrong in ({}, {"csrf": ""}, {"csrf": mark[:-1] + "g"}, {"csrf": "ü"}):
        assert operator.post(path, data=form | wrong).status_code == 403
    foreign = {"Origin": "http://evil.example"}
    assert operator.post(path, data=form | {"csrf": mark}, headers=foreign).status_code == 403
    foreign = {"Sec-Fetch-Site": "same-site"}
    assert operator.post(path, data=form | {"csrf": mark}, headers=foreign).status_code == 403
    other = client_of(Access(TOKEN, open_to_read=True), actions)
    assert other.post(path, data=form | {"csrf": mark}).status_code == 403
    assert operator.get(path).status_code == 405
    assert actions.done == []


def test_signing_out_ends_the_session_not_only_the_cookie(operator: TestClient, actions: FakeActions) -> None:
    name, mark = operator.cookies[COOKIE], csrf(operator)
    operator.post("/sign-out", data={"csrf": mark})
    operator.cookies.set(COOKIE, name)
    assert operator.post("/ask", data={"csrf": mark, "view": IMAGE_VIEW, "key": "k"}).status_code == 403
    assert actions.done == []


def test_forms_are_bounded_and_complete(operator: TestClient, actions: FakeActions) -> None:
    mark = csrf(operator)
    assert operator.post("/ask", content=b"x" * (FORM_BYTES + 1)).status_code == 413
    assert operator.post("/ask", content=b"&".join(b"a=1" for _ in range(50))).status_code == 400
    assert operator.post("/ask", content=b"\xff").status_code == 400
    assert operator.post("/ask", data={"csrf": mark, "view": "nowhere", "key": "k"}).status_code == 400
    assert operator.post("/retry", data={"csrf": mark}).status_code == 400
    assert actions.done == []


# ── listening ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_where_others_can_come_it_wants_tls_and_a_token_or_a_word() -> None:
    everywhere = Settings(console_address="0.0.0.0:8080")
    with pytest.raises(TransportRefused, match="EMBARK_TLS_CERTIFICATE"):
        check_listening(everywhere, open_to_read=True)
    plain = everywhere.model_copy(update={"plaintext": True})
    with pytest.raises(TransportRefused, match="EMBARK_CONSOLE_TOKEN"):
        check_listening(plain, open_to_read=False)
    check_listening(plain, open_to_read=True)
    check_listening(plain.model_copy(update={"console_token": TOKEN}), open_to_read=False)
    check_listening(Settings(console_address="127.0.0.1:8080"), open_to_read=False)


def test_on_this_machine_it_answers_to_its_names_and_those_of_the_settings() -> None:
    assert hosts_of(Settings(console_hosts=["Console.Example"])) == {*LOOPBACK, "console.example"}
    assert hosts_of(Settings(console_address="10.0.0.1:80")) is None


def test_a_token_is_long_enough_to_be_one() -> None:
    with pytest.raises(ValueError, match="console_token"):
        Settings(console_token="short")  # noqa: S106
    assert "console_token" not in repr(Settings(console_token=TOKEN))
