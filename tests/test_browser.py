"""The built site in a real browser: every page at two widths, and the search.

Needs a site (`python -m sphinx -W -b html docs docs/_build`, or the folder that JAXLOSS_SITE names), Chromium and
`pip install playwright`, which brings no browser of its own; skipped where one of them is missing.
"""

import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.site import NAMES, SITE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (1300, 390)
WORDS = """imbalance segmentation mixup Flax Keras detection distillation PyTorch optax XGBoost LightGBM Equinox
scikit-learn TensorFlow torchvision ignore_index label_smoothing class_weight sample_weight pos_weight weights smoothing
calibration noisy vocabulary multi-label ordinal focal boosting entropy mesh logits gradient Hessian glossary"""

LOOK = """async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  const found = [];
  const name = e => `${e.tagName} ${e.className} ${e.textContent.trim().slice(0, 60)}`;
  for (const e of document.querySelectorAll('.math')) {
    if (!e.querySelector('mjx-container')) found.push(`mathematics not rendered: ${name(e)}`);
  }
  for (const e of document.querySelectorAll('[data-mjx-error], mjx-merror')) found.push(`no mathematics: ${name(e)}`);
  for (const e of document.images) if (!e.naturalWidth) found.push(`broken image: ${e.src}`);
  return found;
}"""
WIDE = """() => {
  const width = document.documentElement.clientWidth, found = [];
  if (document.documentElement.scrollWidth > width) found.push('the page scrolls sideways');
  const scrolls = e => ['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX);
  for (const e of document.querySelectorAll('article *')) {
    const box = e.getBoundingClientRect();
    if (!box.width || (box.right <= width + 1 && box.left >= -1)) continue;
    let inside = e.parentElement;
    while (inside.tagName !== 'ARTICLE' && !scrolls(inside)) inside = inside.parentElement;
    if (inside.tagName === 'ARTICLE') found.push(`too wide: ${e.tagName} ${e.className} ${e.textContent.slice(0, 60)}`);
  }
  return found.slice(0, 5);
}"""


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if not CHROMIUM:
        pytest.skip("needs Chromium")
    if not (SITE / "index.html").exists():
        pytest.skip(f"no site in {SITE}")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(browser):
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(SITE)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def tab(browser):
    """A page of the browser, and what its console has complained about."""
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": 900})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"not found: {request.url}"))
    page.on("request", lambda request: None if "127.0.0.1" in request.url else complaints.append(f"asks {request.url}"))
    yield page, complaints
    page.close()


def test_every_page_at_both_widths(tab, address):
    page, complaints = tab
    wrong = {}
    for path in sorted(SITE.rglob("*.html")):
        name = str(path.relative_to(SITE))
        complaints.clear()
        page.set_viewport_size({"width": WIDTHS[0], "height": 900})
        page.goto(f"{address}/{name}")
        found = page.evaluate(LOOK)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            found += [f"{width} px: {x}" for x in page.evaluate(WIDE)]
        if found + complaints:
            wrong[name] = found + complaints
    assert not wrong, "\n".join(f"{name}: {x}" for name, all_ in wrong.items() for x in all_)


def results(page, address: str, word: str) -> list[str]:
    page.goto(f"{address}/search.html?q={word}")
    summary = "document.querySelector('#search-results .search-summary')"
    page.wait_for_function(
        f"{summary} && !/Searching|Preparing/.test(document.querySelector('#search-results').innerText)"
    )
    page.wait_for_function("!/\\.\\.\\.|…/.test(document.querySelector('#search-results h2').innerText)")
    return page.eval_on_selector_all("#search-results ul.search > li > a", "all => all.map(a => a.href)")


@pytest.mark.parametrize("word", WORDS.split())
def test_the_search_finds_words(word, tab, address):
    assert results(tab[0], address, word)


@pytest.mark.parametrize("name", NAMES)
def test_the_search_finds_names(name, tab, address):
    """Its own page is among the first."""
    found = results(tab[0], address, name)
    assert any(f"generated/jaxloss.{name}.html" in x for x in found[:3]), found[:5]
