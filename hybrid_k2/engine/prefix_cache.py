"""Pages computed for earlier requests, found again by the exact tokens before them.

A tree: each node is the tokens of one page, so that a path from the root is a prefix. Its pages lie
in the model's pool and, evicted from there, in RAM; whole ones are on disk, too. Owns what is kept
and what goes first. Knows nothing of what lies in a page, nor of requests and their order.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from hybrid_k2.engine.disk_cache import DiskCache
from hybrid_k2.engine.stats import TierStats
from hybrid_k2.model.pages import PAGE_TOKENS, OutOfPages, pages_of

# Pages fetched from RAM or disk in one step: 8K tokens, for which other answers wait 0.1-0.3 s.
_FETCH_PAGES = 128


class _Node:
    """One page of tokens: in the pool, or in RAM; the last of a path may hold less than a page."""

    __slots__ = ("children", "key", "page_id", "parent", "ram")

    parent: "_Node"  # a root is its own
    page_id: Any  # of the pool; None while the page is in RAM

    def __init__(self, parent: "_Node | None", key: bytes) -> None:
        self.parent = parent or self
        self.key = key  # its tokens, int32
        self.children: dict[bytes, _Node] = {}
        self.page_id = None
        self.ram: Any = None  # uint8 [page_bytes], None while the page is in the pool

    @property
    def is_whole(self) -> bool:
        return len(self.key) == 4 * PAGE_TOKENS


class PrefixCache:
    """Shares the pages of `pool` with the sequences' caches; each kept page has it as an owner.

    A sequence that holds a kept page holds all before it, too, so what nobody uses is evicted from
    the ends of paths inwards, the least recently used first.
    """

    def __init__(self, pool: Any, *, ram_bytes: int = 0, disk: DiskCache | None = None) -> None:
        """pool: a model.kv_cache.PagePool.  ram_bytes: for pages evicted from it; 0 is none."""
        self._pool = pool
        self._disk = disk
        self._ram_pages = ram_bytes // pool.page_bytes
        self._roots: dict[str, _Node] = {}
        self._is_kept = np.zeros(pool.num_pages, dtype=bool)  # pages of nodes
        # Least recently used first, and children before their parents.
        self._in_pool: OrderedDict[_Node, None] = OrderedDict()
        self._in_ram: OrderedDict[_Node, None] = OrderedDict()
        self._hit_tokens = {"memory": 0, "ram": 0, "disk": 0}
        self._evicted_pages = {"memory": 0, "ram": 0}

    @property
    def num_available(self) -> int:
        """Pages that are free or would be, once all that nobody uses were evicted."""
        return self._pool.num_free + self._num_unused()

    @property
    def page_bytes(self) -> int:
        return self._pool.page_bytes

    def has_room(self, token_ids: Sequence[int], num_promised: int, salt: str = "") -> bool:
        """True where a sequence of these tokens, and its next one, finds pages without taking one
        of a running sequence's, nor of the `num_promised` that those will need.
        """
        missing = pages_of(len(token_ids) + 1) + num_promised - self.num_available
        if missing <= 0:
            return True
        path = self._path(np.asarray(token_ids, dtype=np.int32), salt)
        page_ids = [node.page_id for node in path if node.page_id is not None]
        return sum(map(self._pool.is_shared, page_ids)) >= missing  # those in use can be shared

    def extend(self, token_ids: Sequence[int], cache: Any, salt: str = "") -> int:
        """Gives a cache all pages kept of its tokens; returns by how many tokens it grew.

        The last token is never among them, because its logits are still wanted. Only what was kept
        under the same salt is found.
        """
        ids = np.asarray(token_ids[:-1], dtype=np.int32)
        path, length = self._match(ids, salt)
        gained = length - cache.length
        if gained <= 0:
            return 0
        cache.adopt([node.page_id for node in path], length)
        self._touch(path)
        self._hit_tokens["memory"] += gained
        return gained

    def fetch(self, token_ids: Sequence[int], cache: Any, salt: str = "") -> int:
        """Brings pages that follow a cache back from RAM or disk, 8K tokens at most; returns by how
        many tokens it grew.
        """
        ids = np.asarray(token_ids[:-1], dtype=np.int32)
        first = cache.length // PAGE_TOKENS
        if first == len(ids) // PAGE_TOKENS:
            return 0
        try:
            tier, num_pages = self._fetch(ids, first, cache, salt)
        except OutOfPages:  # to compute it needs the same pages: the engine decides who gets them
            return 0
        gained = (first + num_pages) * PAGE_TOKENS - cache.length
        if gained <= 0:
            return 0
        cache.length += gained
        self._hit_tokens[tier] += gained
        self.keep(token_ids[: cache.length], cache, salt)
        return gained

    def keep(self, token_ids: Sequence[int], cache: Any, salt: str = "") -> None:
        """Keeps the pages of a cache's first tokens, which are `token_ids`, from now on.

        Where somebody else's page of the same tokens is kept already, the cache gets that one for
        its own. A page that is still written to must not be among them.
        """
        ids = np.asarray(token_ids, dtype=np.int32)
        node, path = self._roots.setdefault(salt, _Node(None, b"")), []
        for page_idx in range(pages_of(len(ids))):
            child = self._child(node, _key(ids, page_idx))
            if child is None:
                break
            if child.page_id is None:
                child.page_id, child.ram = cache.page_ids[page_idx], None
                self._in_ram.pop(child, None)
                self._pool.share([child.page_id])
                self._is_kept[child.page_id] = True
            elif child.page_id != cache.page_ids[page_idx]:
                cache.replace_page(page_idx, child.page_id)
            path.append(child)
            node = child
        self._touch(path)

    def finish(self, token_ids: Sequence[int], cache: Any, salt: str = "") -> None:
        """Keeps all of an ended sequence, writes its whole pages to disk behind its back, and
        releases its cache.
        """
        self.keep(token_ids, cache, salt)
        num_whole = len(token_ids) // PAGE_TOKENS
        if self._disk is not None and num_whole:
            ids = np.asarray(token_ids[: num_whole * PAGE_TOKENS], dtype=np.int32)
            self._disk.save(ids, cache.page_ids[:num_whole], salt)
        cache.release()

    def discard(self, token_ids: Sequence[int], first_token: int, salt: str = "") -> None:
        """Forgets what is kept of a sequence from one of its tokens on, and all that follows it."""
        ids = np.asarray(token_ids, dtype=np.int32)
        path = self._path(ids, salt)
        if first_token // PAGE_TOKENS < len(path):
            self._drop_all(path[first_token // PAGE_TOKENS])

    def reserve(self, cache: Any, num_tokens: int) -> None:
        """cache.reserve, with pages evicted for it; OutOfPages where sequences hold the others."""
        while True:
            try:
                return cache.reserve(num_tokens)
            except OutOfPages as error:
                if not self._evict(error.num_missing) and not self._take_from_disk():
                    raise

    def collect(self) -> None:
        """Takes pages back that have been written to disk meanwhile."""
        if self._disk is not None:
            self._disk.collect()

    def forget(self) -> None:
        """Gives every page in pool and RAM back that is only kept; files stay."""
        self._take_from_disk()
        self._give_back(list(self._in_pool))
        self._in_pool.clear()
        self._in_ram.clear()
        self._roots.clear()

    def clear(self) -> None:
        """Forgets everything, files included."""
        self.forget()
        if self._disk is not None:
            self._disk.clear()

    def save(self) -> int:
        """Writes what is kept in the pool and not on disk yet; returns bytes written."""
        if self._disk is None:
            return 0
        ends = [node for node in reversed(self._in_pool) if self._ends_path(node)]
        for node in ends:
            path, salt = self._up(node)
            ids = np.frombuffer(b"".join(node.key for node in path), dtype=np.int32)
            self._disk.save(ids, [node.page_id for node in path], salt, wait=True)
        return self._disk.flush()

    def close(self) -> None:
        """Forgets what is kept; a file being written is finished, those queued are not."""
        self.forget()
        if self._disk is not None:
            self._disk.close()

    def stats(self) -> tuple[TierStats, ...]:
        """Of each tier there is."""
        pool, page_bytes = self._pool, self._pool.page_bytes
        unused = self._num_unused()
        tiers = [
            TierStats(
                name="memory",
                pages_total=pool.num_pages,
                pages_in_use=pool.num_pages - pool.num_free - unused,
                pages_cached=len(self._in_pool),
                bytes_total=pool.num_pages * page_bytes,
                bytes_used=(pool.num_pages - pool.num_free) * page_bytes,
                hit_tokens=self._hit_tokens["memory"],
                evicted_pages=self._evicted_pages["memory"],
            )
        ]
        if self._ram_pages:
            tiers.append(
                TierStats(
                    name="ram",
                    pages_total=self._ram_pages,
                    pages_cached=len(self._in_ram),
                    bytes_total=self._ram_pages * page_bytes,
                    bytes_used=len(self._in_ram) * page_bytes,
                    hit_tokens=self._hit_tokens["ram"],
                    evicted_pages=self._evicted_pages["ram"],
                )
            )
        if self._disk is not None:
            tiers.append(self._disk.stats(self._hit_tokens["disk"]))
        return tuple(tiers)

    def _match(self, ids: np.ndarray, salt: str) -> tuple[list[_Node], int]:
        """The pool's nodes that begin as ids do, and of how many tokens; the last one may go on
        differently.
        """
        path = [node for node in self._path(ids, salt) if node.page_id is not None]
        length = sum(len(node.key) for node in path) // 4
        node = path[-1] if path else self._roots.get(salt)
        rest = ids[length : length + PAGE_TOKENS]
        if node is None or len(rest) == 0:
            return path, length
        children = [child for child in node.children.values() if child.page_id is not None]
        common = [_common_length(child.key, rest) for child in children]
        if max(common, default=0):
            path.append(children[int(np.argmax(common))])
            length += max(common)
        return path, length

    def _path(self, ids: np.ndarray, salt: str) -> list[_Node]:
        """The nodes of exactly these tokens, in whatever tier, as far as there are."""
        node, path = self._roots.get(salt), []
        for page_idx in range(pages_of(len(ids))):
            node = node.children.get(_key(ids, page_idx)) if node is not None else None
            if node is None:
                break
            path.append(node)
        return path

    def _child(self, node: _Node, key: bytes) -> _Node | None:
        """The child of these tokens, a new one where there is none; None where a longer one has
        them. Shorter ones that it continues go.
        """
        if key in node.children:
            return node.children[key]
        if any(other.startswith(key) for other in node.children):
            return None
        for other in [child for child in node.children.values() if key.startswith(child.key)]:
            self._drop_all(other)
        node.children[key] = _Node(node, key)
        return node.children[key]

    def _fetch(self, ids: np.ndarray, first: int, cache: Any, salt: str) -> tuple[str, int]:
        """Fills pages from page `first` on; returns from where and how many."""
        nodes = self._path(ids, salt)[first : first + _FETCH_PAGES]
        in_ram = [node.ram for node in nodes if node.is_whole and node.ram is not None]
        if in_ram:  # its copies are held here: making room may drop their nodes
            self.reserve(cache, (first + len(in_ram)) * PAGE_TOKENS)
            self._pool.write_pages(cache.page_ids[first : first + len(in_ram)], in_ram)
            return "ram", len(in_ram)
        if self._disk is None or (run := self._disk.find(ids, first, salt)) is None:
            return "disk", 0
        num_pages = min(run.num_pages, _FETCH_PAGES)
        self.reserve(cache, (first + num_pages) * PAGE_TOKENS)
        page_ids = cache.page_ids[first : first + num_pages]
        return "disk", self._disk.load(run, page_ids)

    def _touch(self, path: list[_Node]) -> None:
        for node in reversed(path):
            self._in_pool[node] = None
            self._in_pool.move_to_end(node)

    def _evict(self, num_pages: int) -> bool:
        """Frees so many pages that nobody uses, or what there is; False where there is none."""
        victims = []
        for node in self._in_pool:
            if not self._pool.is_shared(node.page_id):
                victims.append(node)
                if len(victims) == num_pages:
                    break
        for node in victims:
            if node.is_whole and self._ram_pages:
                [node.ram] = self._pool.read_pages([node.page_id])
                self._in_ram[node] = None
        self._give_back(victims)
        for node in victims:
            del self._in_pool[node]
            if node.ram is None:
                del node.parent.children[node.key]
        self._evicted_pages["memory"] += len(victims)
        while len(self._in_ram) > self._ram_pages:
            node, _ = self._in_ram.popitem(last=False)
            del node.parent.children[node.key]
            self._evicted_pages["ram"] += 1
        return bool(victims)

    def _drop_all(self, node: _Node) -> None:
        """Forgets a node and all below it."""
        del node.parent.children[node.key]
        below = [node]
        while below:
            node = below.pop()
            below += node.children.values()
            self._in_ram.pop(node, None)
            if node.page_id is not None:
                del self._in_pool[node]
                self._give_back([node])

    def _give_back(self, nodes: list[_Node]) -> None:
        """Takes nodes' pages from them."""
        page_ids = [node.page_id for node in nodes]
        self._pool.free(page_ids)
        self._is_kept[page_ids] = False
        for node in nodes:
            node.page_id = None

    def _take_from_disk(self) -> bool:
        """Gives up what waits to be written; True where that gave pages back."""
        return self._disk is not None and self._disk.give_up()

    def _num_unused(self) -> int:
        """Pages that are only kept. Reads whole arrays, so that any thread may ask."""
        return int(np.count_nonzero(self._is_kept & (self._pool.owners == 1)))

    def _ends_path(self, node: _Node) -> bool:
        """True for a whole page without a whole one after it in the pool."""
        after = node.children.values()
        return node.is_whole and not any(c.is_whole and c.page_id is not None for c in after)

    def _up(self, node: _Node) -> tuple[list[_Node], str]:
        """The path that ends with a node, and the salt of its root."""
        path = [node]
        while path[-1].parent is not path[-1]:
            path.append(path[-1].parent)
        root = path.pop()
        salt = next(salt for salt, other in self._roots.items() if other is root)
        return path[::-1], salt


def _key(ids: np.ndarray, page_idx: int) -> bytes:
    return ids[page_idx * PAGE_TOKENS : (page_idx + 1) * PAGE_TOKENS].tobytes()


def _common_length(key: bytes, ids: np.ndarray) -> int:
    tokens = np.frombuffer(key, dtype=np.int32)
    length = min(len(tokens), len(ids))
    differs = tokens[:length] != ids[:length]
    return int(differs.argmax()) if differs.any() else length
