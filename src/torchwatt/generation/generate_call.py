"""One call of transformers' `generate`: when its tokens were made, and how many there are by its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torchwatt.core.trace import ModelSize

MAX_MARKS = 4_096  # times of tokens kept for one call; then every second one is dropped
# Criteria that end a sequence at a length or an end token; what others end is known only from their answers.
COUNTED_CRITERIA = frozenset({"MaxLengthCriteria", "EosTokenCriteria", "MaxTimeCriteria", "ConfidenceCriteria"})


class GenerateCall:
    """One call of `generate` in progress."""

    def __init__(self, model: Any, start_ns: int, *, is_draft: bool) -> None:
        self.model = model
        self.start_ns = start_ns
        self.is_draft = is_draft
        self.open: AbstractContextManager[Any] | None = None
        self.sampled = 0
        self.token_ns: list[int] = []
        self.stride = 1
        self.done: list[Any] = []  # answers of stopping criteria, where they decide the length of a sequence
        self.drafted = 0
        self.matches: list[Any] = []
        self.is_assisted = False
        self.cache: Any = None
        self.cached_tokens = 0
        self.sequences = 1  # that are generated together, for live views

    def mark(self, t_ns: int) -> None:
        """Record the time of an output token."""
        if self.sampled % self.stride == 0:
            self.token_ns.append(t_ns)
            if len(self.token_ns) > MAX_MARKS:
                self.token_ns, self.stride = self.token_ns[::2], 2 * self.stride
        self.sampled += 1


class Counts:
    """Input and output tokens of each request; None where unknown."""

    def __init__(self, input_tokens: tuple[int | None, ...], output_tokens: tuple[int | None, ...]) -> None:
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens


def count_tokens(call: GenerateCall, result: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Counts:
    """Count the tokens of a call.

    Input tokens are those of the attention mask, or all but padding; output tokens go up to the end token, which is
    one of them. Of a call that failed only the input is known.
    """
    model = call.model
    config = kwargs.get("generation_config") or (args[1] if len(args) > 1 else None) or model.generation_config
    ends = _token_ids(kwargs.get("eos_token_id", getattr(config, "eos_token_id", None)))
    ends = ends or _token_ids(getattr(model.generation_config, "eos_token_id", None))
    pad = kwargs.get("pad_token_id", getattr(config, "pad_token_id", None))
    ids = given_ids(args, kwargs)
    inputs = _input_tokens(ids, kwargs, ends, pad)
    sequences = getattr(result, "sequences", result)
    if not hasattr(sequences, "tolist"):
        return Counts(inputs, (None,) * len(inputs))
    rows = sequences.tolist()
    if len(rows) % len(inputs):
        return Counts((None,) * len(rows), (None,) * len(rows))
    each = len(rows) // len(inputs)  # sequences returned for each prompt
    begin = _prompt_length(model, ids, kwargs)
    if len(rows) == 1:
        outputs = [len(rows[0]) - begin]  # one sequence is never padded
    else:
        outputs = _lengths_by_criteria(call, len(rows)) or [_output_length(row[begin:], ends) for row in rows]
    return Counts(tuple(n for n in inputs for _ in range(each)), tuple(outputs))


def given_ids(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the prompts that `generate` was called with; None without any."""
    return args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))


def _token_ids(ids: Any) -> frozenset[int]:
    values = ids.tolist() if hasattr(ids, "tolist") else ids
    if values is None:
        return frozenset()
    return frozenset(values) if isinstance(values, list | tuple) else frozenset({int(values)})


def _input_tokens(ids: Any, kwargs: Mapping[str, Any], ends: frozenset[int], pad: Any) -> tuple[int | None, ...]:
    mask, embeds = kwargs.get("attention_mask"), kwargs.get("inputs_embeds")
    if mask is not None and getattr(mask, "ndim", 0) == 2:
        return tuple(mask.sum(-1).tolist())
    if embeds is not None:
        return (int(embeds.shape[1]),) * int(embeds.shape[0])
    if ids is None:
        return (1,)  # the start token
    if ids.ndim != 2 or ids.is_floating_point():
        return (None,) * int(ids.shape[0])  # not tokens: audio or pictures
    # Without a mask the library takes padding for padding unless it is also an end token.
    if pad is not None and int(pad) not in ends and bool((ids == pad).any()):
        return tuple((ids != pad).sum(-1).tolist())
    return (int(ids.shape[1]),) * int(ids.shape[0])


def _prompt_length(model: Any, ids: Any, kwargs: Mapping[str, Any]) -> int:
    """Return how many tokens the returned sequences begin with that were not generated."""
    if model.config.is_encoder_decoder:
        given = kwargs.get("decoder_input_ids")
        return 1 if given is None else int(given.shape[1])
    if ids is not None:
        return int(ids.shape[1])
    return 0 if kwargs.get("inputs_embeds") is not None else 1


def _output_length(tokens: Sequence[int], ends: frozenset[int]) -> int:
    """Return the number of tokens up to the first end token; without one, none of them is padding."""
    return next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))


def _lengths_by_criteria(call: GenerateCall, rows: int) -> list[int] | None:
    """Return the length of each sequence from the answers of stopping criteria; None where they do not decide it."""
    if rows == 1 or not call.done or len(call.done) != call.sampled or call.is_assisted:
        return None
    lengths = [len(call.done)] * rows
    for step in range(len(call.done) - 1, -1, -1):
        flags = call.done[step].tolist()
        if len(flags) != rows:
            return None
        for i, flag in enumerate(flags):
            if flag:
                lengths[i] = step + 1
    return lengths


EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_top_k", "moe_k")


def measure_model(model: Any) -> ModelSize:
    """Count the parameters of a model: shared ones once, and those of routed experts apart.

    transformers counts the weights that are packed into 4 bits; the weights of dynamically quantised layers are no
    parameters, and are counted beside.
    """
    total = int(model.num_parameters()) if hasattr(model, "num_parameters") else _numel(model.parameters())
    for module in model.modules():
        if ".quantized." in type(module).__module__ and callable(getattr(module, "weight", None)):
            total += int(module.weight().numel())
            bias = module.bias() if callable(getattr(module, "bias", None)) else None
            total += 0 if bias is None else int(bias.numel())
    config = model.config
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    experts = _first_count(text, EXPERT_COUNTS) or 0
    if experts < 2:
        return ModelSize(type(model).__name__, total)
    routed = _numel(value for name, value in model.named_parameters() if ".experts." in f".{name}")
    per_token = _first_count(text, EXPERTS_PER_TOKEN) if routed else None
    return ModelSize(type(model).__name__, total, routed, experts, per_token)


def _numel(tensors: Iterable[Any]) -> int:
    return sum(int(tensor.numel()) for tensor in tensors)


def _first_count(config: Any, names: Sequence[str]) -> int | None:
    """Return the first of several fields of a configuration that is a number."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), None)


def tensor_bytes(value: Any) -> int:
    """Return the bytes of all tensors that a cache holds."""
    return sum({id(tensor): tensor.numel() * tensor.element_size() for tensor in _tensors(value, 5)}.values())


def _tensors(value: Any, depth: int) -> Iterator[Any]:
    if hasattr(value, "__tensor_flatten__"):  # a quantised tensor states the type and size of what it stands for
        for name in value.__tensor_flatten__()[0]:
            yield from _tensors(getattr(value, name), depth)
    elif hasattr(value, "element_size") and hasattr(value, "numel"):
        yield value
    elif depth and isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors(item, depth - 1)
    elif depth and isinstance(value, dict):
        yield from _tensors(list(value.values()), depth)
    elif depth and type(value).__module__.partition(".")[0] in {"transformers", "optimum"}:
        yield from _tensors(list(vars(value).values()), depth - 1)
