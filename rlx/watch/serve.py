"""A page on this machine alone: a socket of the loopback interface, and requests that are not for it refused."""

import socket
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlx.watch.folders import opened

HOST = "127.0.0.1"
HOSTS = (HOST, "localhost")  # that a browser may name; another one is a page elsewhere that points here
PORT = 8050
TRIES = 20  # ports
UPDATE = "/_dash-update-component"  # the only address that anything is posted to
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; script-src 'self' "
)


def server(path: Path, seconds: float | None = None) -> Any:
    """The web application (WSGI) of the page; it reads files, and writes none.

    Args:
        path: of a run, a sweep, or a folder of several.
        seconds: between two looks at the files; by default three.

    Raises:
        ValueError: where there is nothing to be watched, or the extra `watch` is missing.
    """
    opened(path)  # what is wrong with the path is said first
    try:
        from rlx.watch import page
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("dash", "dash_ag_grid", "plotly"):
            raise
        raise ValueError('rlx watch needs other packages: pip install "rlx[watch]"') from None
    import flask

    app, watched = page.app_of(path, page.SECONDS if seconds is None else seconds)
    web = app.server

    @web.before_request
    def only_from_here() -> Any:
        name = flask.request.host.rpartition(":")[0] or flask.request.host
        if name not in HOSTS:
            return flask.Response("This page is for this machine alone.", 403)
        if flask.request.method not in ("GET", "HEAD") and (flask.request.method, flask.request.path) != (
            "POST",
            UPDATE,
        ):
            return flask.Response("This page only reads.", 405)
        return None

    @web.after_request
    def kept_here(answer: Any) -> Any:
        answer.headers["Content-Security-Policy"] = policy
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "no-referrer"
        return answer

    def picture(pathname: str = "") -> Any:
        with watched.lock:
            found = watched.picture(pathname)
        if found is None:
            flask.abort(404)
        return flask.send_file(found, max_age=0)

    # Before the address of dash that answers to everything.
    web.add_url_rule("/picture", "picture", picture, methods=["GET"])
    web.add_url_rule("/picture/<pathname>", "picture", picture, methods=["GET"])
    policy = POLICY + " ".join(f"'{name}'" if not name.startswith("'") else name for name in app.csp_hashes())
    return web


def bound(port: int, say: Callable[[str], object] = print) -> socket.socket:
    """A listening socket of the loopback interface at a port, or at the next one that is free; `say` is told then.

    Raises:
        ValueError: where none of the next ports is free, or the number is no port.
    """
    if not 0 < port < 2**16:
        raise ValueError(f"--port {port}: give a number from 1 to {2**16 - 1}")
    for number in range(port, min(port + TRIES, 2**16)):
        found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((HOST, number))
            found.listen(128)
        except OSError:
            found.close()
            continue
        if number != port:
            say(f"port {port} is taken: {number} is the next one that is free")
        return found
    raise ValueError(f"--port {port}: it and the next {TRIES - 1} ports are taken; give another one")


def serve(path: Path, port: int = PORT, show: bool = False, say: Callable[[str], object] = print) -> None:
    """Serves the page until Ctrl-C.

    Args:
        path: of a run, a sweep, or a folder of several.
        port: to be listened to; where it is taken, the next free one.
        show: open the page in the browser.
        say: is told the address.

    Raises:
        ValueError: as `server` and `bound`.
    """
    web = server(path)
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, *args: Any, **kwargs: Any) -> None:
            """Nothing: a page that asks every few seconds would fill the terminal."""

        def log(self, type: str, message: str, *args: Any) -> None:
            print(f"rlx watch: {message % args if args else message}", file=sys.stderr)

    with bound(port, say) as listening:
        number = listening.getsockname()[1]
        running = make_server(HOST, number, web, threaded=True, request_handler=Quiet, fd=listening.fileno())
        address = f"http://{HOST}:{number}/"
        say(f"{path}: {address}  (Ctrl-C ends it)")
        if show:
            webbrowser.open(address)
        running.serve_forever()  # which takes Ctrl-C as its end
