"""A real JupyterLab in a headless Chromium, for the widgets' tests.

    def test_something(lab):
        lab.open("from opensora_lite.widgets import MaskTimeline\nw = MaskTimeline(16)\nw")
        lab.page.get_by_role("button", name="Undo").click()
        assert lab.python("w.text") == "0"

Every test ends with two checks: no request has left this machine, and nothing was an error in the console.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SHOTS = Path(__file__).parent / "shots"
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
OVERRIDES = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # else cells out of sight are not drawn
}
# Console errors of JupyterLab itself (the second: a page closed while its kernel starts); widgets may cause none.
JUPYTERLAB_ERRORS = ("favicon", "Could not restore the debugger state")
PATIENCE = 180  # seconds that any step may take: the machine may do other work


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The address of a JupyterLab, and the folder that it shows."""
    if not CHROMIUM:
        pytest.skip("needs a browser: `apt-get install chromium`, or CHROMIUM=/path/to/chrome")
    root = tmp_path_factory.mktemp("jupyter")
    for folder in ("app", "notebooks"):
        (root / folder).mkdir()
    (root / "app" / "overrides.json").write_text(json.dumps(OVERRIDES))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": root / "notebooks",
        "ServerApp.disable_check_xsrf": True,
        "IdentityProvider.token": "",
        "LabApp.expose_app_in_browser": True,
        "LabApp.app_settings_dir": root / "app",
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--{name}={value}" for name, value in settings.items()]
    own = {f"JUPYTER_{name}_DIR": str(root / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **own, "PYTHONPATH": paths, "JUPYTER_PREFER_ENV_PATH": "1"}
    log = root / "log.txt"
    with open(log, "w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(10 * PATIENCE):
            try:
                urllib.request.urlopen(f"{url}/api", timeout=5).read()
                break
            except OSError:
                assert process.poll() is None, f"JupyterLab has ended:\n{log.read_text()}"
                time.sleep(0.1)
        else:
            pytest.fail(f"JupyterLab does not answer:\n{log.read_text()}")
        yield url, root / "notebooks"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:  # on a busy machine it may wait longer for its kernels
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def browser(server):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def lab(server, browser, request):
    """A Lab with an empty page; a test that needs another window asks for it: lab.page.set_viewport_size(…)."""
    context = browser.new_context(viewport={"width": 1200, "height": 1000}, device_scale_factor=1)
    context.set_default_timeout(1000 * PATIENCE)
    lab = Lab(*server, context.new_page(), request.node.name)
    yield lab
    lab.close()
    context.close()
    assert not lab.foreign, f"requests to other machines: {lab.foreign}"
    assert not lab.errors, f"errors in the console: {lab.errors}"


class Lab:
    """One notebook in JupyterLab, and the kernel behind it."""

    def __init__(self, url, folder, page, name):
        self.url, self.folder, self.page = url, folder, page
        self.name = "".join(c if c.isalnum() else "_" for c in name)
        self.foreign, self.errors = [], []
        page.on("request", self._on_request)
        page.on("console", lambda message: message.type == "error" and self._on_error(message.text))
        page.on("pageerror", lambda error: self._on_error(str(error)))

    def _on_request(self, request):
        if urlsplit(request.url).hostname not in ("127.0.0.1", None) and not request.url.startswith(("data:", "blob:")):
            self.foreign.append(request.url)

    def _on_error(self, text):
        if not any(known in text for known in JUPYTERLAB_ERRORS):
            self.errors.append(text)

    def open(self, *cells: str) -> None:
        """Make a notebook of these cells, open it, and run it."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
        nbformat.write(notebook, self.folder / f"{self.name}.ipynb")
        self.load()
        self.command("notebook:run-all-cells")

    def load(self) -> None:
        """Open the notebook as it was saved, with the kernel that it had, if any: what a reload of the page does."""
        self.page.goto(f"{self.url}/lab/tree/{self.name}.ipynb?reset")
        self.page.wait_for_function("window.jupyterapp && document.querySelector('.jp-Notebook')")
        self.page.evaluate(
            """async () => {
                const panel = window.jupyterapp.shell.currentWidget;
                await panel.context.ready;
                await panel.sessionContext.ready;
                await panel.sessionContext.session.kernel.info;
            }"""
        )

    def command(self, name: str):
        """Run one of JupyterLab's commands and wait for its end."""
        return self.page.evaluate("async (name) => { await window.jupyterapp.commands.execute(name) }", name)

    def save(self) -> None:
        self.command("docmanager:save")

    def python(self, expression: str):
        """The value, as JSON can carry it, of an expression in the notebook's kernel."""
        return json.loads(self.run(f"import json as _json; print(_json.dumps({expression}))"))

    def run(self, code: str) -> str:
        """Run code in the notebook's kernel, past the cells; gives what it printed."""
        text, error = self.page.evaluate(
            """async (code) => {
                const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
                let text = "", error = null;
                const future = kernel.requestExecute({ code, store_history: false });
                future.onIOPub = ({ header, content }) => {
                    if (header.msg_type === "stream" && content.name === "stdout") text += content.text;
                    if (header.msg_type === "error") error = content.traceback.join("\\n");
                };
                await future.done;
                return [text, error];
            }""",
            code,
        )
        assert error is None, error
        return text

    def wait_for(self, expression: str, value=True, seconds: float = PATIENCE) -> None:
        """Wait until an expression in the kernel has a value."""
        end = time.monotonic() + seconds
        while (now := self.python(expression)) != value:
            assert time.monotonic() < end, f"{expression} is {now!r} after {seconds} s, not {value!r}"
            time.sleep(0.05)

    def axe(self, selector: str = ".osl") -> list[str]:
        """What axe-core finds seriously wrong with the accessibility of a part of the page."""
        axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe: pip install -e '.[dev]'")
        found = axe.Axe().run(self.page, context=selector).response["violations"]
        return [
            f"{v['id']} ({v['impact']}): {v['help']}: {[node['html'][:200] for node in v['nodes'][:3]]}"
            for v in found
            if v["impact"] in ("serious", "critical")
        ]

    def theme(self, dark: bool) -> None:
        name = "JupyterLab Dark" if dark else "JupyterLab Light"
        self.page.evaluate(
            "async (theme) => { await window.jupyterapp.commands.execute('apputils:change-theme', { theme }) }", name
        )
        self.page.wait_for_function(f"document.body.dataset.jpThemeLight === '{str(not dark).lower()}'")

    def shots(self, name: str, selector: str = ".osl") -> None:
        """Pictures of a widget, light and dark, wide and narrow, where OPENSORA_SHOTS names a folder for them."""
        folder = os.environ.get("OPENSORA_SHOTS")
        if not folder:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.command("application:toggle-left-area")
        for dark in (False, True):
            self.theme(dark)
            for width, kind in ((1200, "wide"), (620, "narrow")):
                self.page.set_viewport_size({"width": width, "height": 2800})
                time.sleep(0.5)
                path = Path(folder) / f"{name}_{'dark' if dark else 'light'}_{kind}.png"
                self.page.locator(selector).first.screenshot(path=path, animations="disabled")
                with Image.open(path) as picture:
                    smaller = picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
                smaller.save(path, optimize=True)

    def close(self) -> None:
        """Shut the kernel down."""
        self.page.evaluate(
            """async () => {
                const panel = window.jupyterapp?.shell.currentWidget;
                if (panel?.sessionContext) await panel.sessionContext.shutdown();
            }"""
        )
