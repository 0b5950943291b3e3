"""Models of the Hugging Face hub: `hf://ORG/MODEL`, `hf://ORG/MODEL@REVISION`, `hf://ORG/MODEL/FILE_OR_FOLDER`.

A revision is resolved to its commit once, so that all bytes come from one state of the repository. Tokens come from
where huggingface_hub has them (`hf auth login`, `HF_TOKEN`), and go to the hub alone. `HF_ENDPOINT` names another hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.io.files import Stamp
from brainsurgery_jax.store.remote.http import HttpClient
from brainsurgery_jax.store.remote.places import RemoteItem, missing_package

if TYPE_CHECKING:
    from huggingface_hub import HfApi, RepoFile

_HOW = "Write hf://ORG/MODEL, hf://ORG/MODEL@REVISION, or one with /FILE or /FOLDER at its end."


class HubPlace:
    """A repository of the hub at one commit, a folder or a file of it; see `places.RemotePlace`."""

    def __init__(self, url: str):
        self._shown = url
        self._repository, self._revision, self._inner = parse_hub_address(url)
        self._api = connect_hub(url)
        from huggingface_hub.utils import build_hf_headers

        self._client = HttpClient(url, build_hf_headers())

    def list(self) -> Mapping[str, RemoteItem]:
        """The files of the repository at the commit that the revision names now."""
        files = self.list_repository()
        inner = self._inner
        if inner and inner in files:
            return {inner.rpartition("/")[2]: files[inner]} | _beside(inner, files)
        below = f"{inner}/" if inner else ""
        found = {name.removeprefix(below): item for name, item in files.items() if name.startswith(below)}
        if not found:
            raise StoreError(
                self._shown, f"the repository has no '{inner}'", remedy="Check the path in the repository."
            )
        return found

    def list_repository(self) -> dict[str, RemoteItem]:
        """All files of the repository at the commit that the revision names now."""
        from huggingface_hub import RepoFile

        try:
            commit = self._api.repo_info(self._repository, revision=self._revision).sha
            entries = list(self._api.list_repo_tree(self._repository, recursive=True, revision=commit))
        except Exception as error:  # which errors there are depends on the HTTP library that the hub's package uses
            raise hub_refusal(self._shown, self._revision, error) from error
        root = f"{self._api.endpoint}/{self._repository}/resolve/{commit}"
        shown = f"hf://{self._repository}@{(commit or '')[:12]}"
        return {
            e.path: RemoteItem(f"{root}/{quote(e.path)}", f"{shown}/{e.path}", Stamp(e.size, _hash_of(e)))
            for e in entries
            if isinstance(e, RepoFile)
        }

    def stamp(self, item: RemoteItem) -> Stamp:
        """What was listed: the files of a commit never change."""
        return item.stamp

    def read_some(self, item: RemoteItem, view: memoryview, offset: int) -> int:
        """Fills the beginning of `view`."""
        return self._client.read_some(item, view, offset)

    def close(self) -> None:
        """Closes all connections."""
        self._client.close()


def connect_hub(url: str) -> HfApi:
    """The hub that huggingface_hub knows. Raises StoreError if that is not installed."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise missing_package(url, "huggingface_hub") from None
    return HfApi()


def hub_refusal(shown: str, revision: str | None, error: Exception) -> StoreError:
    """What to tell of an answer of the hub. Its text is left out: it may quote what was sent."""
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            problem, remedy = "the model is gated", "Accept its conditions on its page, then run `hf auth login`."
        case errors.RevisionNotFoundError():
            problem, remedy = f"has no revision '{revision}'", "Check the name of the branch, tag or commit."
        case errors.RepositoryNotFoundError():
            problem = "there is no such model, or you may not see it"
            remedy = "Check the name. For a private model, run `hf auth login` first."
        case _:
            problem = f"could not ask the hub ({type(error).__name__})"
            remedy = "Check the network and try again. HF_ENDPOINT names the hub."
    return StoreError(shown, problem, remedy=remedy)


def parse_hub_address(url: str) -> tuple[str, str | None, str]:
    """Repository, revision and path within it. Raises StoreError.

    Slashes within a revision are those of `refs/pr/NUMBER` and `refs/convert/NAME`, or are written `%2F`, as for the
    hub's own client.
    """
    parts = url.partition("://")[2].strip("/").split("/")
    if len(parts) < 2 or not all(parts):
        raise StoreError(url, "names no model of the hub", remedy=_HOW)
    organisation, model, *inner = parts
    model, mark, revision = model.partition("@")
    if not model or (mark and not revision):
        raise StoreError(url, "names no model of the hub", remedy=_HOW)
    if revision == "refs" and len(inner) > 1:
        revision, inner = "/".join((revision, *inner[:2])), inner[2:]
    return f"{organisation}/{model}", unquote(revision) or None, "/".join(inner)


def _beside(path: str, files: Mapping[str, RemoteItem]) -> dict[str, RemoteItem]:
    """The other files in the folder of a file: the shards of an index, and the config of a model."""
    folder = path.rpartition("/")[0]
    return {name.rpartition("/")[2]: item for name, item in files.items() if name.rpartition("/")[0] == folder}


def _hash_of(entry: RepoFile) -> str:
    """What tells the content of a file of the hub: the SHA-256 of a large one, the git blob of a small one."""
    large = entry.lfs
    return str(large.sha256 if large is not None else entry.blob_id)
