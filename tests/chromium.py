"""Look at a page in a headless Chromium, as a person would open it: from disk, without a network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

# The page lies in a frame of the width asked for, since a window has a smallest one. What it is like becomes the title.
_AROUND = """<!doctype html><body style="margin:0"><iframe id="f" src="{source}"
style="border:0;width:{width}px;height:900px"></iframe><script>
window.onload = () => {{
  const frame = document.getElementById("f").contentWindow, inner = frame.document;
  let result = null;
  {script}
  const pictures = [...inner.images];
  document.title = "seen:" + JSON.stringify({{
    headings: [...inner.querySelectorAll("h2")].map(h => h.innerText),
    links: [...inner.querySelectorAll("nav a")].map(a => !!inner.getElementById(a.hash.slice(1))),
    wide: inner.scrollingElement.scrollWidth, width: frame.innerWidth,
    pictures: pictures.length, broken: pictures.filter(p => !p.naturalWidth).length,
    text: inner.body.innerText, result,
  }});
}};
</script></body>"""


def visit(page: Path, width: int, folder: Path, script: str = "") -> tuple[dict[str, Any], list[str]]:
    """What a page is like at a width in pixels, and what the browser complains about. `folder` takes its own files.

    The script does something in the page, `frame`, and may set `result`.
    """
    around = folder / f"around-{width}.html"
    around.write_text(_AROUND.format(source=page.as_uri(), width=width, script=script), encoding="utf-8")
    command = [
        str(PROGRAM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--allow-file-access-from-files",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--enable-logging=stderr",
        "--v=0",
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=20000",
        "--dump-dom",
        around.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    title = re.search(r"<title>seen:(.*?)</title>", done.stdout, re.DOTALL)
    if title is None:
        raise AssertionError(f"the page did not load: {done.stderr[-2000:]}")
    plain = title[1].replace("&lt;", "<").replace("&gt;", ">").replace("&nbsp;", " ").replace("&amp;", "&")
    return json.loads(plain), [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
