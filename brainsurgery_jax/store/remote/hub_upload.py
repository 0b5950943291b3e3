"""Outputs that go to the Hugging Face hub: large files first, then one commit, which makes all of them appear.

Large files go to the hub's own store, where nobody sees them before a commit names them. The commit adds the files of
the output and deletes those of the checkpoint that it replaces; the hub accepts it only on top of the commit that was
looked at. So a run that fails or is killed leaves the repository as it was. Tokens come from where huggingface_hub has
them (`hf auth login`, `HF_TOKEN`).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from brainsurgery_jax.errors import StoreError, worded
from brainsurgery_jax.store.folder import is_weights
from brainsurgery_jax.store.io.local import LocalPlace
from brainsurgery_jax.store.parts import FolderParts, parts_of
from brainsurgery_jax.store.remote.file import RemoteFile
from brainsurgery_jax.store.remote.hub import HubPlace, connect_hub, hub_refusal, parse_hub_address
from brainsurgery_jax.store.remote.mirror import Mirror
from brainsurgery_jax.store.remote.places import CONNECTIONS, RemoteItem
from brainsurgery_jax.store.replacing import Replacement
from brainsurgery_jax.store.sidecars import is_document
from brainsurgery_jax.wording import few

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

MAIN = "main"
"""The branch that an address without a revision means."""

UPLOADS = 4
"""Files that are uploaded at the same time."""

_SMALL = 64 << 20  # bytes; the hub keeps larger files in its own store

_MESSAGE = "Write a checkpoint with brainsurgery-jax"
_OF_GIT = ".git"  # how the names of files begin that a repository has for itself: attributes, what to ignore


class _State(NamedTuple):
    """A destination at a commit: its files by relative names; an output of one file has the name `""`."""

    commit: str
    files: Mapping[str, RemoteItem]

    def same_files(self, other: _State) -> bool:
        """Whether both hold the same."""
        return {n: i.stamp for n, i in self.files.items()} == {n: i.stamp for n, i in other.files.items()}


class HubUpload:
    """One output on its way to a repository, which is looked at now; see `atomic.Upload`. Raises StoreError."""

    def __init__(self, url: str, *, overwrite: bool):
        self._url, self._overwrite = url, overwrite
        self._repository, revision, self._inner = parse_hub_address(url)
        self._branch = revision or MAIN
        self._api = connect_hub(url)
        self._before = self._state_at(self._find_head())
        self._additions: dict[str, CommitOperationAdd] = {}
        self._gone: list[str] = []

    # --- The destination ----------------------------------------------------------------------------------------------

    def check(self, *, directory: bool) -> Replacement | None:
        """What the output would replace. Raises StoreError if it may not, or if this user may not write there. Changes
        nothing."""
        found = self._find_replaced(directory=directory)
        self._ask_to_write()
        return found

    def _look(self) -> _State:
        """The destination as it is now."""
        head = self._find_head()
        return self._before if head == self._before.commit else self._state_at(head)

    def _find_head(self) -> str:
        """The newest commit of the branch."""
        try:
            branches = {b.name: b.target_commit for b in self._api.list_repo_refs(self._repository).branches}
        except Exception as error:  # which errors there are depends on the HTTP library that the hub's package uses
            raise hub_refusal(self._url, self._branch, error) from error
        if self._branch not in branches:
            remedy = "An output goes to a branch: check its name, or create it on the hub first."
            raise StoreError(self._url, f"has no branch '{self._branch}'", remedy=remedy)
        return branches[self._branch]

    def _state_at(self, commit: str) -> _State:
        with closing(self._place_at(commit)) as place:
            files = place.list_repository()
        if self._inner in files:
            return _State(commit, {"": files[self._inner]})
        below = f"{self._inner}/" if self._inner else ""
        return _State(commit, {n.removeprefix(below): item for n, item in files.items() if n.startswith(below)})

    def _place_at(self, commit: str) -> HubPlace:
        return HubPlace(f"hf://{self._repository}@{commit}")

    def _find_replaced(self, *, directory: bool) -> Replacement | None:
        """What is there of a checkpoint, if it may be replaced. Raises StoreError."""
        files = self._before.files
        if files and ("" in files) == directory:
            kind, other = ("file", "folder") if directory else ("folder", "file")
            remedy = "Write to another path of the repository."
            raise StoreError(self._url, f"is a {kind}, and the output is a {other}", remedy=remedy)
        if not (names := [name for name in files if not name.startswith(_OF_GIT)]):
            return None
        parts = self._list_parts() if directory else None
        if parts is not None and (others := [name for name in parts.foreign if is_weights(name)]):
            problem = f"cannot be overwritten: it holds {few(others)}, which the checkpoint there has no part in"
            remedy = "Write to another folder of the repository, or delete these files on the hub first."
            raise StoreError(self._url, problem, remedy=remedy)
        if not self._overwrite:
            remedy = (
                "Write to another repository, branch or folder, or replace the checkpoint: `overwrite: true` in the "
                f"output of a plan, or {worded(shell='`--overwrite`', python='`overwrite=True`')}. Other files stay."
            )
            shown = self._inner.rpartition("/")[2]
            raise StoreError(self._url, f"exists: it holds {few(sorted(n or shown for n in names))}", remedy=remedy)
        if parts is None:
            return Replacement(self._url, False, (self._inner.rpartition("/")[2],), (), files[""].stamp.size)
        gone = [name for name in parts.files if not is_document(name)] if parts.whole else []
        return Replacement(self._url, True, tuple(gone), (), sum(files[name].stamp.size for name in gone))

    def _list_parts(self) -> FolderParts:
        """What is there, as it would be told apart in a folder of this machine."""
        with (
            closing(self._place_at(self._before.commit)) as place,
            ThreadPoolExecutor(CONNECTIONS) as executor,
            tempfile.TemporaryDirectory(prefix="brainsurgery-remote-") as folder,
        ):
            Mirror(folder, {n: RemoteFile(place, item, executor) for n, item in self._before.files.items()}, whole=True)
            parts = parts_of(folder)
        return parts._replace(foreign=tuple(name for name in parts.foreign if not name.startswith(_OF_GIT)))

    def _ask_to_write(self) -> None:
        """Asks how an empty file would be uploaded: the hub answers only who may write, and nothing is sent."""
        from huggingface_hub import CommitOperationAdd

        with self._refusals("ask whether it may be written to"):
            self._preupload([CommitOperationAdd(self._path("empty"), b"")])

    # --- The upload ---------------------------------------------------------------------------------------------------

    def send(self, place: LocalPlace) -> None:
        """Uploads the large files."""
        from huggingface_hub import CommitOperationAdd

        names = place.list()
        self._refuse_if_moved(self._look())
        replaced = self._find_replaced(directory="" not in names)
        self._gone = [name for name in replaced.files if name not in names] if replaced and replaced.directory else []
        self._additions = {name: CommitOperationAdd(self._path(name), place.path_of(name)) for name in names}
        with self._refusals("upload the files"):
            self._preupload([*self._additions.values()])

    def finish(self) -> None:
        """Makes the commit. Raises StoreError if the destination is not what it was."""
        from huggingface_hub import CommitOperationDelete

        now = self._look()
        self._refuse_if_moved(now)
        deletions = [CommitOperationDelete(self._path(name)) for name in self._gone]
        try:
            with _without_bars():
                commit = self._api.create_commit(
                    self._repository, [*self._additions.values(), *deletions], commit_message=_MESSAGE,
                    revision=self._branch, parent_commit=now.commit, num_threads=UPLOADS,
                ).oid  # fmt: skip
        except Exception as error:
            self._look_after(error)
            return
        if wrong := self._differing(self._state_at(commit)):
            problem = f"was committed to, and the commit does not hold what was sent: {few(wrong)}"
            remedy = f"Run again, and overwrite it. The commit before it is {now.commit}."
            raise StoreError(self._url, problem, remedy=remedy)

    def _look_after(self, error: Exception) -> None:
        """Raises StoreError if there is no commit: it may have been made, and its answer was lost."""
        try:
            after = self._look()
        except StoreError as bad:
            problem = "was sent a commit, and whether the hub made it is not known"
            raise StoreError(self._url, problem, remedy=f"Look at it before you run again. {bad.remedy}") from error
        if self._differing(after):
            self._refuse_if_moved(after)
            raise self._refusal("commit to it", error) from error

    def abandon(self) -> None:
        """Nobody sees what no commit names, and the hub drops it: there is nothing to remove."""

    def _differing(self, state: _State) -> list[str]:
        """The files that are not as the commit makes them."""
        lacking = [name for name, file in self._additions.items() if not _holds(state.files.get(name), file)]
        return [*lacking, *(name for name in self._gone if name in state.files)]

    def _refuse_if_moved(self, now: _State) -> None:
        if not now.same_files(self._before):
            problem = f"changed while running: there is another commit on the branch '{self._branch}'"
            raise StoreError(self._url, problem, remedy="Somebody wrote to it; look at it, then run again.")

    def _preupload(self, additions: Sequence[CommitOperationAdd]) -> None:
        """Uploads what is large. No `.gitignore` of the repository leaves anything out."""
        with _without_bars():
            self._api.preupload_lfs_files(
                self._repository, additions, revision=self._branch, num_threads=UPLOADS, free_memory=False,
                gitignore_content="",
            )  # fmt: skip

    def _path(self, name: str) -> str:
        return "/".join(filter(None, (self._inner, name)))

    @contextmanager
    def _refusals(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise self._refusal(doing, error) from error

    def _refusal(self, doing: str, error: Exception) -> StoreError:
        """What to tell of an answer to a request to write. Its text is left out: it may quote what was sent."""
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403, 404):
            remedy = "Run `hf auth login` with a token that may write to it, or name another repository."
            return StoreError(self._url, "you may not write to it", remedy=remedy)
        shown = type(error).__name__ if status is None else f"status {status}"
        remedy = "Check the network, then run again: what was uploaded is not sent again."
        return StoreError(self._url, f"could not {doing} ({shown})", remedy=remedy)


def _holds(item: RemoteItem | None, file: CommitOperationAdd) -> bool:
    """Whether a file of the hub has the bytes of one that was sent: large files have their SHA-256, small ones the hash
    that git gives them."""
    if item is None or item.stamp.size != file.upload_info.size:
        return False
    if item.stamp.version == file.upload_info.sha256.hex():
        return True
    with file.as_file() as opened:
        content = opened.read() if item.stamp.size <= _SMALL else b""
    return item.stamp.version == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def _without_bars() -> Iterator[None]:
    """A block in which huggingface_hub shows no progress of its own."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
