"""ModelScope's API, as its SDK and people with a hub in front of them found it."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from tests.hublab.asked import Asked, Json, Refused, bytes_of
from tests.hublab.repos import Commit, File, Folder, Repo, listing
from tests.osslab.operations import Sent
from tests.osslab.wire import Answer

_NO_REPO, _NO_ACCESS, _NO_TREE, _NO_FILE = 10010205001, 10010200001, 10990101004, 10010206001
_TREE, _BLOB = "16384", "33188"  # modes, as the hub writes them: decimal, in a string


def answer(asked: Asked, path: str) -> Answer | Sent:
    """For everything below ``/api/v1/``. Raises `Refused`."""
    if path == "repos/internalAccelerationInfo":
        asked.told("acceleration")
        address = asked.hub.query_address() if asked.hub.region else ""
        return _data(asked, {"InternalRegionQueryAddress": address})
    kind, _, rest = path.partition("/")
    words = rest.split("/")
    if kind != "models" or len(words) < 2:
        asked.told("unknown")
        raise _refused(asked, 404, 404, "page not found")
    name, what = f"{words[0]}/{words[1]}", "/".join(words[2:])
    operation = {
        "": "model",
        "repo/files": "files",
        "revisions": "revisions",
        "commits": "commits",
        "repo": "repo",
    }.get(what)
    query = asked.request.query
    asked.told(operation or "unknown", name, query.get("FilePath") or query.get("Root", ""))
    if operation is None:
        raise _refused(asked, 404, 404, "page not found")
    repo = _allowed(asked, name, inside=operation in ("files", "commits", "repo"))
    return _TABLE[operation](asked, repo)


def _allowed(asked: Asked, name: str, *, inside: bool) -> Repo:
    """The repository, if the sender may see it. A token that nobody knows is as good as none."""
    hub, repo = asked.hub, asked.hub.find(name)
    if repo is None:
        raise _refused(asked, 404, _NO_REPO, "获取模型信息失败，信息：record not found")  # noqa: RUF001
    if repo.private and not asked.valid:
        raise _refused(asked, hub.private_status, _NO_ACCESS, "无权限访问该模型")
    if repo.gated and inside and asked.token not in repo.granted:
        raise _refused(asked, hub.gated_status, _NO_ACCESS, "该模型需要申请授权后才能下载")
    return repo


def _model(asked: Asked, repo: Repo) -> Answer:
    owner, name = repo.id.split("/")
    return _data(
        asked,
        {
            "Id": abs(hash(repo.id)) % 1_000_000,
            "Name": name,
            "Path": owner,
            "Revision": repo.default,
            "Visibility": 1 if repo.private else 5,
            "ProtectedMode": 1 if repo.gated else 2,
            "CreatedTime": int(repo.created),
            "LastUpdatedTime": int(max((one.when for one in repo.commits.values()), default=repo.created)),
            "StorageSize": sum(file.size for file in repo.files.values()) if repo.commits else 0,
        },
    )


def _files(asked: Asked, repo: Repo) -> Answer:
    query = asked.request.query
    commit = repo.find(query.get("Revision", ""))
    if commit is None and asked.hub.unknown_revision == "404":
        raise _refused(asked, 404, _NO_TREE, "获取模型目录树失败")
    if commit is None:  # the hub does not say that it knows no such revision: there is just nothing in it
        return _data(asked, {"Files": None, "IsVisual": 0, "LatestCommitter": None})
    recursive = query.get("Recursive", "false").lower() == "true"
    found = listing(commit, query.get("Root", ""), recursive=recursive)
    entries = [_entry(asked, repo, one) for one in found[: asked.hub.listing_limit]]
    who = {"Id": "", "ShortId": commit.id[:8], "CommitterName": "hublab", "CommittedDate": int(commit.when)}
    return _data(asked, {"Files": entries or None, "IsVisual": 0, "LatestCommitter": who})


def _entry(asked: Asked, repo: Repo, found: File | Folder) -> dict[str, Any]:
    file = found if isinstance(found, File) else None
    last = repo.commits.get(found.commit)
    return {
        "CommitMessage": last.message if last else "",
        "CommittedDate": int(found.when),
        "CommitterName": "hublab",
        "InCheck": False,
        "IsLFS": file is not None and file.size >= asked.hub.direct_below,
        "Mode": _BLOB if file else _TREE,
        "Name": found.name,
        "Path": found.path,
        "Revision": found.commit,
        "Sha256": file.sha256 if file else "",
        "Size": file.size if file else 0,
        "Type": "blob" if file else "tree",
    }


def _revisions(asked: Asked, repo: Repo) -> Answer:
    def told(names: dict[str, str]) -> list[dict[str, Any]]:
        return [{"Revision": name, "CreatedAt": int(repo.commits[one].when)} for name, one in names.items()]

    return _data(asked, {"RevisionMap": {"Branches": told(repo.branches), "Tags": told(repo.tags) or None}})


def _commits(asked: Asked, repo: Repo) -> Answer:
    """The history of `Ref`; a parameter of another name is not seen, and the default branch is meant."""
    query = asked.request.query
    size, page = int(query.get("PageSize") or 10), int(query.get("PageNumber") or 1)
    history: list[Commit] = []
    at = repo.find(query.get("Ref", ""))
    while at is not None:
        history.append(at)
        at = repo.commits.get(at.parent)
    told = [
        {"Id": one.id, "ShortId": one.id[:8], "Title": one.message, "Message": one.message,
         "CommittedDate": int(one.when), "ParentIds": [one.parent] if one.parent else []}
        for one in history[(page - 1) * size : page * size]
    ]  # fmt: skip
    return _data(asked, {"Commit": told or None, "TotalCount": len(history)})


def _repo(asked: Asked, repo: Repo) -> Answer | Sent:
    """The bytes: small files at once, whatever range was asked for; for others, where they are."""
    query = asked.request.query
    commit = repo.find(query.get("Revision", ""))
    if commit is None:
        raise _refused(asked, 404, _NO_TREE, "获取模型目录树失败")
    file = commit.files.get(query.get("FilePath", ""))
    if file is None:
        raise _refused(asked, 404, _NO_FILE, "获取模型文件失败，信息：file not found")  # noqa: RUF001
    if file.size < asked.hub.direct_below:
        told = quote(file.name, safe="", errors="surrogateescape")
        return bytes_of(file, 200, {"Content-Disposition": f"attachment; filename*=UTF-8''{told}"})
    here = asked.request.headers.get("x-aliyun-region-id", "")
    internal = asked.hub.region is not None and here == asked.hub.region
    return Answer(302, {"Location": asked.hub.signed(file, internal=internal)}, b"")


_TABLE = {"model": _model, "files": _files, "revisions": _revisions, "commits": _commits, "repo": _repo}


def _data(asked: Asked, data: Json) -> Answer:
    told = {"Code": 200, "Data": data, "Message": "success", "RequestId": asked.request_id, "Success": True}
    return _json(asked, 200, told)


def _refused(asked: Asked, status: int, code: int, message: str) -> Refused:
    told: Json = {"Code": code, "Message": message, "RequestId": asked.request_id, "Success": False}
    return Refused(_json(asked, status, told), str(code))


def _json(asked: Asked, status: int, told: Json) -> Answer:
    headers = {"Content-Type": "application/json; charset=utf-8", "X-Request-Id": asked.request_id}
    return Answer(status, headers, json.dumps(told, ensure_ascii=False).encode("utf-8", "surrogateescape"))
