"""Open the project in a real browser: run notebooks in JupyterLab, move a slider, see the picture change, keep screenshots.

    pip install playwright                       # and a Chromium: `playwright install chromium`, or the system's
    python tests/browser_check.py                # needs a finished smoke run (make smoke); pictures go to build/browser
    python tests/browser_check.py 00_start_here 10_cam --chromium /usr/bin/chromium

Not a part of `make test`: it needs a browser and takes some minutes.
"""

import argparse
import contextlib
import hashlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

import nbformat
from playwright.sync_api import Page, TimeoutError, sync_playwright

ROOT = Path(__file__).resolve().parent.parent


def start_jupyter(home: Path) -> tuple[subprocess.Popen, str]:
    """Start JupyterLab with settings of its own on a free port; return the process and its address, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    folders = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "RUNTIME", "DATA")}
    environment = (
        os.environ
        | folders
        | {
            "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
            "HOME": str(home),
            "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
            "PYTHONPATH": str(ROOT),
        }
    )
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--allow-root",
        f"--ServerApp.root_dir={home}",
        f"--IdentityProvider.token={token}",
    ]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            urlopen(f"{address}/api?token={token}", timeout=2).close()
            return process, f"{address}/lab/tree/NAME?reset&token={token}"
        except OSError:
            time.sleep(1)
    process.terminate()
    sys.exit("JupyterLab does not answer")


def copy_empty(name: str, home: Path) -> Path:
    """Copy a notebook without its outputs, so that every number of a cell comes from this run."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, home / f"{name}.ipynb")
    return home / f"{name}.ipynb"


def run_all(page: Page, file: Path, minutes: float) -> list[str]:
    """Run all cells of the open notebook, saving now and then; return the errors that the saved file holds."""
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=120_000)
    accept = page.locator(".jp-Dialog button.jp-mod-accept")
    with contextlib.suppress(TimeoutError):  # JupyterLab may ask for the kernel
        accept.first.click(timeout=30_000)
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first.wait_for(timeout=120_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    end = time.time() + 60 * minutes
    while time.time() < end:
        page.wait_for_timeout(4000)
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1000)
        cells = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
        outputs = [output for cell in cells for output in cell.outputs]
        errors = [f"{output.ename}: {output.evalue}" for output in outputs if output.output_type == "error"]
        if errors or all(cell.execution_count for cell in cells):
            return errors
    return [f"did not finish in {minutes} minutes"]


def picture_of(area) -> str:
    """Return a hash of the first picture beneath a slider."""
    return hashlib.sha256((area.locator("img").first.get_attribute("src") or "").encode()).hexdigest()


def move_slider(page: Page, shots: Path, name: str) -> str:
    """Move the first slider of the open notebook by keyboard; return what is wrong, or nothing."""
    panel = page.locator(".jp-Notebook .widget-interact").filter(has=page.locator(".noUi-handle")).first  # some have menus only
    if not panel.count():
        return "no slider was found"
    panel.scroll_into_view_if_needed()
    panel.locator("img").first.wait_for(timeout=60_000)
    panel.screenshot(path=shots / f"{name}-slider-before.png")
    before = picture_of(panel)
    handle = panel.locator(".noUi-handle").first
    handle.focus()
    for key in ("ArrowRight", "ArrowLeft"):  # it may stand at its end
        for _ in range(4):
            handle.press(key)
        for _ in range(60):
            page.wait_for_timeout(500)
            if panel.locator("img").count() and picture_of(panel) != before:
                page.wait_for_timeout(1000)
                panel.screenshot(path=shots / f"{name}-slider-after.png")
                return ""
    return "the picture does not change with the slider"


def check(names: list[str], chromium: str, minutes: float) -> list[str]:
    """Run the notebooks in a browser; return what is wrong. Copies are run, the stored notebooks stay as they are."""
    shots, faults = ROOT / "build/browser", []
    shots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        home = Path(folder)
        files = {name: copy_empty(name, home) for name in names}
        tracker = home / "settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
        tracker.parent.mkdir(parents=True)
        tracker.write_text('{"windowingMode": "none"}')  # all cells are in the page, not only those in view
        server, address = start_jupyter(home)
        browser = playwright.chromium.launch(executable_path=chromium or None, args=["--no-sandbox"])
        try:
            for name in names:
                page = browser.new_page(viewport={"width": 1400, "height": 1000})
                page.goto(address.replace("NAME", f"{name}.ipynb"))
                started = time.time()
                errors = run_all(page, files[name], minutes)
                seconds = time.time() - started
                faults += [f"{name}: {error.strip().splitlines()[0]}" for error in errors if error.strip()]
                page.screenshot(path=shots / f"{name}.png")
                wrong = move_slider(page, shots, name)
                faults += [f"{name}: {wrong}"] if wrong else []
                print(f"{name} finished, {seconds:.0f} s for opening and all cells", flush=True)
                page.close()
        finally:
            browser.close()
            server.terminate()
            server.wait()
    return faults


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run notebooks in JupyterLab in a real browser and move a slider.")
    parser.add_argument("names", nargs="*", default=["00_start_here", "10_cam"])
    parser.add_argument("--chromium", default=shutil.which("chromium") or "", help="a browser; empty: playwright's own")
    parser.add_argument("--minutes", type=float, default=10, help="for each notebook")
    options = parser.parse_args()
    problems = check(options.names, options.chromium, options.minutes)
    print("\n".join(problems) or "all notebooks ran, every slider changed its picture; screenshots are in build/browser")
    sys.exit(bool(problems))
