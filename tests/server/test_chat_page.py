"""The chat page in a real, headless Chromium, against the real server."""

import json
import re
import shutil
import urllib.request

import pytest
from server.scripted_engine import ENDLESS, ScriptedEngine

pytest.importorskip("playwright", reason="the package playwright is not installed")
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WAIT_MS = 15_000
WEATHER = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        # As root, which containers are, Chromium has no sandbox.
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=options)


@pytest.fixture
def visit(browser):
    """visit(server, **context options): the page, whose errors and foreign requests fail a test."""
    contexts, wrong = [], []

    def open_page(server, **options) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if "policy" in line.text else None)
        own = (f"{server.url}/", "data:")
        page.on("request", lambda a: None if a.url.startswith(own) else wrong.append(a.url))
        page.goto(server.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def done(page: Page, text: str = "Answer complete") -> None:
    expect(page.get_by_role("status")).to_have_text(text, timeout=WAIT_MS)


def set_options(page: Page, **fields: str) -> None:
    page.get_by_role("button", name="Options").click()
    for label, value in fields.items():
        page.get_by_label(label.replace("_", " ")).fill(value)
    page.get_by_role("button", name="Done").click()


def test_an_answer_streams_in_and_the_conversation_survives_a_reload(serve, visit):
    page = visit(serve(ScriptedEngine()))
    expect(page.locator("#model")).to_have_text("k2")
    ask(page, "hello")
    done(page)
    expect(page.locator("article.assistant .text")).to_have_text("You said: hello")
    assert re.search(r"^\d+ tokens, [\d.]+ tok/s; prompt of \d+", page.inner_text("#figures"))
    page.reload()
    expect(page.locator("article")).to_have_count(2)
    ask(page, "again")
    done(page)
    expect(page.locator("article.assistant .text").last).to_have_text("You said: again")
    page.get_by_role("button", name="New conversation").click()
    page.reload()
    expect(page.locator("article")).to_have_count(0)


def test_text_of_the_model_is_shown_and_never_run(serve, visit):
    text = "See `x` and <img src=x onerror=alert(1)>\n```python\nprint('<b>')\n```\nafter"
    page = visit(serve(ScriptedEngine({"code": [text]})))
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    ask(page, "code")
    done(page)
    answer = page.locator("article.assistant .text")
    expect(answer.locator("pre")).to_have_text("print('<b>')\n")
    expect(answer.locator("code").first).to_have_text("x")
    expect(answer).to_contain_text("<img src=x onerror=alert(1)>")
    expect(answer).to_contain_text("after")
    assert answer.locator("img").count() == 0


def test_reasoning_is_folded_and_stays_as_the_reader_left_it(serve, visit):
    engine = ScriptedEngine({"why": ["<think>", "Hm, hm.", "</think>", "Because."]}, thinking=True)
    page = visit(serve(engine))
    ask(page, "why")
    done(page)
    thought = page.get_by_text("Hm, hm.")
    expect(thought).to_be_hidden()
    page.get_by_text("Reasoning", exact=True).focus()
    page.keyboard.press("Enter")
    expect(thought).to_be_visible()
    expect(page.locator("article.assistant > .text")).to_have_text("Because.")


def test_stop_ends_the_request_in_the_engine_and_keeps_what_came(serve, visit):
    server = serve(ScriptedEngine(context=100_000))
    page = visit(server)
    ask(page, ENDLESS)
    expect(page.locator("article.assistant .text")).to_contain_text("abcdef", timeout=WAIT_MS)
    expect(page.locator("#figures")).to_contain_text("tok/s")
    page.keyboard.press("Escape")
    done(page, "Stopped")
    assert server.next_end() == "abort"
    expect(page.locator("article.assistant .text")).to_contain_text("abcdef")
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_regenerate_replaces_the_last_answer(serve, visit):
    server = serve(ScriptedEngine())
    page = visit(server)
    expect(page.get_by_role("button", name="Regenerate")).to_be_disabled()
    ask(page, "hello")
    done(page)
    with page.expect_request("**/chat/completions") as asked:
        page.get_by_role("button", name="Regenerate").click()
    assert [m["role"] for m in asked.value.post_data_json["messages"]] == ["user"]
    expect(page.locator("#figures")).to_contain_text("from the cache")
    expect(page.locator("article")).to_have_count(2)


def test_options_go_into_the_request_and_are_kept(serve, visit):
    page = visit(serve(ScriptedEngine()))
    fields = {"System prompt": "Be brief.", "Temperature": "0.5", "Top_k": "7", "Most_tokens": "3"}
    set_options(page, **fields)
    page.get_by_role("button", name="Options").click()
    page.get_by_label("Thinking").select_option("think first")
    page.get_by_role("button", name="Done").click()
    page.reload()
    with page.expect_request("**/chat/completions") as asked:
        ask(page, "hello")
    body = asked.value.post_data_json
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["top_k"], body["max_tokens"]) == (0.5, 7, 3)
    assert body["chat_template_kwargs"] == {"thinking": True}
    assert "top_p" not in body
    done(page, "The answer was cut at its most tokens")


def test_a_call_is_shown_and_its_result_goes_back(serve, visit):
    section = ["<|tool_calls_section_begin|>", "<|tool_call_begin|>", "functions.get_weather:0"]
    section += ["<|tool_call_argument_begin|>", '{"city":"Oslo"}', "<|tool_call_end|>"]
    engine = ScriptedEngine({"weather": [*section, "<|tool_calls_section_end|>"]})
    page = visit(serve(engine))
    set_options(page, Tools=json.dumps(WEATHER))
    ask(page, "weather")
    done(page)
    expect(page.get_by_text("Calls get_weather")).to_be_visible()
    expect(page.locator(".call pre")).to_have_text('{\n  "city": "Oslo"\n}')
    page.get_by_label("Result of get_weather").fill("rain")
    with page.expect_request("**/chat/completions") as asked:
        page.get_by_role("button", name="Send results").click()
    call, result = asked.value.post_data_json["messages"][-2:]
    assert call["tool_calls"][0]["id"] == result["tool_call_id"] == "functions.get_weather:0"
    assert result["content"] == "rain"


def test_tools_that_are_not_json_are_refused_where_they_are_typed(serve, visit):
    page = visit(serve(ScriptedEngine()))
    set_options(page, Tools="[{")
    expect(page.get_by_role("alert")).to_contain_text("The tools are not JSON")
    expect(page.get_by_role("dialog")).to_be_visible()


def test_reading_a_long_prompt_shows_how_far_it_is(serve, visit):
    engine = ScriptedEngine(prefill_chunk=64)
    server = serve(engine)
    page = visit(server)
    page.evaluate(
        """() => {
            window.told = [];
            const notice = document.getElementById("notice");
            const note = () => window.told.push(notice.textContent);
            new MutationObserver(note).observe(notice, {childList: true});
        }"""
    )
    ask(page, "long " * 60)
    done(page)
    told = page.evaluate("window.told")
    shares = [int(share) for share in re.findall(r"Reading the prompt: (\d+)%", "|".join(told))]
    assert told[0] == "Waiting for the model" and told[-2:] == ["Answering", "Answer complete"]
    assert len(shares) >= 3 and shares == sorted(shares) and shares[-1] < 100
    expect(page.get_by_role("progressbar")).to_be_hidden()


def test_a_failed_request_says_why_and_leaves_the_next_one_alone(serve, visit):
    page = visit(serve(ScriptedEngine(context=200)))
    ask(page, "long " * 300)
    done(page, "The request failed")
    expect(page.locator("article p.wrong")).to_contain_text("maximum context length is 200")


def test_a_key_is_asked_for_by_the_server_and_sent_by_the_page(serve, visit):
    page = visit(serve(ScriptedEngine(), api_keys=("secret",)))
    ask(page, "hello")
    done(page, "The request failed")
    set_options(page, API_key="secret")
    page.get_by_role("button", name="New conversation").click()
    ask(page, "hello")
    done(page)


def test_every_control_has_a_name_and_the_keyboard_reaches_it(serve, visit):
    page = visit(serve(ScriptedEngine()))
    ask(page, "hello")
    done(page)
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert {"send", "again", "open-options", "new"} <= set(reached)
    page.get_by_role("button", name="Options").click()
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, textarea, select")].filter(
            (field) => !field.labels.length || !field.labels[0].textContent.trim()).length"""
    )
    assert unnamed == 0
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(serve, visit, scheme):
    page = visit(serve(ScriptedEngine()), color_scheme=scheme)
    colours = page.evaluate(
        """() => {
            const style = getComputedStyle(document.body);
            const quiet = getComputedStyle(document.getElementById("empty"));
            return [style.backgroundColor, style.color, quiet.color];
        }"""
    )
    page_colour, *texts = (tuple(map(int, re.findall(r"\d+", colour))) for colour in colours)
    assert (sum(page_colour) < 3 * 128) == (scheme == "dark")
    for text in texts:
        assert contrast(page_colour, text) >= 4.5  # WCAG 2.2, level AA


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """WCAG's contrast ratio of two sRGB colours."""

    def luminance(colour: tuple[int, ...]) -> float:
        parts = [part / 255 for part in colour]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_programs_that_want_no_page_get_a_line_of_text(serve):
    with urllib.request.urlopen(serve(ScriptedEngine()).url, timeout=20) as response:
        assert response.headers["content-type"].startswith("text/plain")
        assert b"hybrid-k2 is running" in response.read()
