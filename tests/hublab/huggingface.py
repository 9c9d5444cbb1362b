"""Hugging Face's API, as far as downloading goes."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import quote, unquote, urlencode

from tests.hublab import cdn
from tests.hublab.asked import Asked, Json, Refused
from tests.hublab.repos import Commit, File, Folder, Repo, listing
from tests.osslab.operations import Sent
from tests.osslab.wire import Answer

_WORDS = frozenset({"revision", "tree", "refs", "resolve"})


def api(asked: Asked, path: str) -> Answer:
    """For everything below ``/api/models/``; `path` as sent, for a revision may hold an encoded slash. Raises `Refused`."""
    name, words = _split(path)
    what, revision = words[0], unquote(words[1]) if len(words) > 1 else ""
    place = unquote("/".join(words[2:])).strip("/")
    operation = {"": "hf-model", "revision": "hf-model", "tree": "hf-tree", "refs": "hf-refs"}.get(what)
    asked.told(operation or "unknown", name, place)
    if operation is None:
        raise _refused(404, "", "Sorry, we can't find the page you are looking for.")
    repo = _allowed(asked, name, path)
    if operation == "hf-refs":
        return _refs(repo)
    commit = _commit(repo, revision)
    return _model(asked, repo, commit) if operation == "hf-model" else _tree(asked, repo, commit, path, place)


def resolve(asked: Asked, path: str) -> Answer | Sent:
    """``OWNER/NAME/resolve/REVISION/PATH``. Raises `Refused`."""
    name, words = _split(path)
    asked.told("hf-resolve", name, unquote("/".join(words[2:]), errors="surrogateescape"))
    repo = _allowed(asked, name, path)
    commit = _commit(repo, unquote(words[1]) if len(words) > 1 else "")
    told = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
    if repo.gated and asked.token not in repo.granted:
        restricted = f"Access to model {repo.id} is restricted. You must have access to it and be authenticated to access it."
        raise _refused(403 if asked.valid else 401, "GatedRepo", restricted, told)
    file = commit.files.get(asked.record.key)
    if file is None:
        raise _refused(404, "EntryNotFound", "Entry not found", told)
    lfs = file.size >= asked.hub.direct_below
    told |= {"ETag": f'"{file.git_id(lfs=lfs)}"'}
    if not lfs:
        return cdn.ranged(asked, file, told)
    told |= {
        "X-Linked-Size": str(file.size),
        "X-Linked-ETag": f'"{file.sha256}"',
        "Location": asked.hub.signed(file, internal=False),
    }
    return Answer(302, told, b"Found. Redirecting\n")


def _split(path: str) -> tuple[str, list[str]]:
    """The repository's name (old ones have no owner), and what comes after it: [""] when that is nothing."""
    words = path.split("/")
    at = 1 if len(words) == 1 or words[1] in _WORDS else 2
    return "/".join(map(unquote, words[:at])), words[at:] or [""]


def _allowed(asked: Asked, name: str, path: str) -> Repo:
    """The repository, if the sender may see it. Here a token that nobody knows is worse than none."""
    if asked.token and not asked.valid:
        raise _refused(401, "", "Invalid credentials in Authorization header")
    if name in asked.hub.moved:
        before, _, after = asked.request.target.partition(path)
        there = asked.hub.moved[name] + path.removeprefix(quote(name))
        raise Refused(Answer(307, {"Location": before + there + after}, b"Temporary Redirect"))
    repo = asked.hub.find(name)
    if repo is None or (repo.private and not asked.valid):
        if asked.valid:
            raise _refused(404, "RepoNotFound", "Repository not found")
        raise _refused(401, "RepoNotFound", "Invalid username or password.")
    return repo


def _commit(repo: Repo, revision: str) -> Commit:
    found = repo.find(revision)
    if found is None:
        raise _refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return found


def _model(asked: Asked, repo: Repo, commit: Commit) -> Answer:
    blobs = asked.request.query.get("blobs", "").lower() in ("true", "1")

    def sibling(file: File) -> dict[str, Any]:
        found: dict[str, Any] = {"rfilename": file.path}
        if blobs:
            entry = _entry(asked, repo, file, expand=False)
            found |= {"size": file.size, "blobId": entry["oid"]}
            if "lfs" in entry:
                found["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
        return found

    told: Json = {
        "_id": f"{abs(hash(repo.id)):024x}"[:24],
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.id.partition("/")[0],
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "disabled": False,
        "sha": commit.id,
        "createdAt": _stamp(repo.created),
        "lastModified": _stamp(commit.when),
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [sibling(file) for file in commit.below("")],
    }
    return _json(told)


def _tree(asked: Asked, repo: Repo, commit: Commit, path: str, root: str) -> Answer:
    query = asked.request.query
    found = listing(commit, root, recursive=query.get("recursive", "").lower() in ("true", "1"))
    if not found and root:
        raise _refused(404, "EntryNotFound", f"{root} does not exist on {commit.id!r}")
    expand = query.get("expand", "").lower() in ("true", "1")
    size = min(int(query.get("limit") or asked.hub.page_size), asked.hub.page_size)
    cursor = query.get("cursor", "")
    left = [one for one in found if one.path > cursor]
    headers = {}
    if len(left) > size:
        more = urlencode(query | {"cursor": left[size - 1].path}, errors="surrogateescape")
        host = asked.request.headers.get("host", "")
        headers["Link"] = f'<http://{host}/api/models/{path}?{more}>; rel="next"'
    return _json([_entry(asked, repo, one, expand=expand) for one in left[:size]], headers)


def _entry(asked: Asked, repo: Repo, found: File | Folder, *, expand: bool) -> dict[str, Any]:
    if isinstance(found, Folder):
        told: dict[str, Any] = {"type": "directory", "oid": found.commit, "size": 0, "path": found.path}
    else:
        lfs = found.size >= asked.hub.direct_below
        told = {"type": "file", "oid": found.git_id(lfs=lfs), "size": found.size, "path": found.path}
        if lfs:
            told["lfs"] = {"oid": found.sha256, "size": found.size, "pointerSize": len(found.pointer)}
    if expand:
        last = repo.commits[found.commit]
        told["lastCommit"] = {"id": last.id, "title": last.message, "date": _stamp(last.when)}
    return told


def _refs(repo: Repo) -> Answer:
    def told(kind: str, names: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": one} for n, one in names.items()]

    branches = {"main" if name == repo.default else name: one for name, one in repo.branches.items()}
    return _json({"branches": told("heads", branches), "tags": told("tags", repo.tags), "converts": []})


def _stamp(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(moment))


def _json(told: Json, headers: dict[str, str] | None = None) -> Answer:
    body = json.dumps(told, ensure_ascii=False).encode("utf-8", "surrogateescape")
    return Answer(200, {"Content-Type": "application/json; charset=utf-8", **(headers or {})}, body)


def _refused(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Refused:
    told = {
        "Content-Type": "application/json; charset=utf-8",
        "X-Error-Message": quote(message, safe=" .,:/'"),
        **(headers or {}),
    }
    if code:
        told["X-Error-Code"] = code
    return Refused(Answer(status, told, json.dumps({"error": message}).encode()), code)
