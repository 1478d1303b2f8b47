"""Stages and tokens of transformers' `generate`, in versions 4.46 to 5.x.

One call of `generate` is a batch of requests. Its stage is `prefill` until the first token is sampled, `decode` after
it; `encode` while the encoder of an encoder-decoder model runs, `draft` while an assistant generates. Tokens are
counted from the tensors that go in and come out.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torchwatt.core.requests import RequestBatch
from torchwatt.core.terms import DECODE, DRAFT, ENCODE, PREFILL
from torchwatt.core.tracebacks import drop_own_frames
from torchwatt.generation.request_log import RequestLog

GENERATION_MODULE = "transformers.generation.utils"
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
MAX_MARKS = 4_096  # times of tokens kept for one call; then every second one is dropped
# Criteria that end a sequence at a length or an end token; what others end is known only from their answers.
COUNTED_CRITERIA = frozenset({"MaxLengthCriteria", "EosTokenCriteria", "MaxTimeCriteria", "ConfidenceCriteria"})
ENCODERS = ("_prepare_encoder_decoder_kwargs_for_generation", "_prepare_text_encoder_decoder_kwargs_for_generation")


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

    def mark(self, t_ns: int) -> None:
        """Record the time of an output token."""
        if self.sampled % self.stride == 0:
            self.token_ns.append(t_ns)
            if len(self.token_ns) > MAX_MARKS:
                self.token_ns, self.stride = self.token_ns[::2], 2 * self.stride
        self.sampled += 1


class TransformersAdapter:
    """Wrappers for `GenerationMixin.generate` and the methods that it calls; no fault of theirs reaches the program.

    Args:
        stage: `torchwatt.stage`.
        logs: Returns the logs of the running sessions.
        clock_ns: The sessions' clock.
    """

    def __init__(
        self,
        stage: Callable[[str], AbstractContextManager[Any]],
        logs: Callable[[], Sequence[RequestLog]],
        clock_ns: Callable[[], int],
    ) -> None:
        self._stage = stage
        self._logs = logs
        self._clock_ns = clock_ns
        self._local = threading.local()
        self._pass_threads: set[int] = set()  # that run the passes of continuous batching

    def patches(self) -> list[tuple[Any, str, Wrap]]:
        """Return (owner, attribute, wrapper) of everything to patch; the library is loaded."""
        utils = sys.modules[GENERATION_MODULE]
        mixin = utils.GenerationMixin
        criteria = sys.modules["transformers.generation.stopping_criteria"]
        return [
            (mixin, "generate", self._wrap_generate),
            *((mixin, name, self._wrap_encoder) for name in ENCODERS),
            (mixin, "_prepare_cache_for_generation", self._wrap_cache),
            (mixin, "_get_candidate_generator", self._wrap_candidates),
            (criteria.StoppingCriteriaList, "__call__", self._wrap_criteria),
            (mixin, "generate_batch", self._wrap_generate_batch),
        ]

    def pass_patches(self) -> list[tuple[Any, str, Wrap]]:
        """Return what to patch of continuous batching; its module is loaded."""
        return [(sys.modules[CONTINUOUS_MODULE].ContinuousBatchProcessor, "_generation_step", self._wrap_pass)]

    @property
    def _calls(self) -> list[GenerateCall]:
        try:
            calls: list[GenerateCall] = self._local.calls
        except AttributeError:
            calls = self._local.calls = []
        return calls

    def _wrap_generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
            call = self._begin(model)
            try:
                result = original(model, *args, **kwargs)
            except BaseException as error:
                self._end(call, None, args, kwargs)
                drop_own_frames(error)
                raise
            self._end(call, result, args, kwargs)
            return result

        return generate

    def _begin(self, model: Any) -> GenerateCall | None:
        """Open a call; None for a call of the same model inside another, as custom decoding loops make."""
        calls = self._calls
        if calls and calls[-1].model is model and not calls[-1].is_assisted:
            return None
        call = GenerateCall(model, self._clock_ns(), is_draft=bool(calls))
        calls.append(call)
        self._enter(call, DRAFT if call.is_draft else PREFILL)
        return call

    def _enter(self, call: GenerateCall, stage: str) -> None:
        self._leave(call)
        call.open = self._stage(stage)
        call.open.__enter__()

    def _leave(self, call: GenerateCall) -> None:
        if call.open is not None:
            call.open.__exit__(None, None, None)
            call.open = None

    def _end(self, call: GenerateCall | None, result: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if call is None:
            return
        self._leave(call)
        end_ns = self._clock_ns()
        if call in self._calls:
            self._calls.remove(call)
        if not call.is_draft:
            self._record(call, result, args, kwargs, end_ns)

    def _record(
        self, call: GenerateCall, result: Any, args: Sequence[Any], kwargs: Mapping[str, Any], end_ns: int
    ) -> None:
        counts = Counts((None,), (None,))
        with contextlib.suppress(Exception):
            counts = count_tokens(call, result, args, kwargs)
        accepted = cache_bytes = None
        with contextlib.suppress(Exception):
            accepted = sum(int(matches) for matches in call.matches) if call.is_assisted else None
        with contextlib.suppress(Exception):
            cache_bytes = tensor_bytes(call.cache)
        for log in self._logs():
            log.add(
                RequestBatch(
                    counts.input_tokens,
                    counts.output_tokens,
                    call.start_ns,
                    end_ns,
                    log.take_stretches(call.start_ns, end_ns),
                    call.cached_tokens,
                    call.drafted if call.is_assisted else None,
                    accepted,
                    () if call.is_assisted else tuple(call.token_ns),
                    call.stride,
                    cache_bytes or None,
                )
            )

    def _wrap_encoder(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def prepare(model: Any, *args: Any, **kwargs: Any) -> Any:
            is_own = bool(self._calls) and not self._calls[-1].is_draft
            try:
                with self._stage(ENCODE) if is_own else contextlib.nullcontext():
                    return original(model, *args, **kwargs)
            except BaseException as error:
                drop_own_frames(error)
                raise

        return prepare

    def _wrap_cache(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def prepare(model: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                result = original(model, *args, **kwargs)
            except BaseException as error:
                drop_own_frames(error)
                raise
            call = self._calls[-1] if self._calls else None
            if call is not None and not call.is_draft:
                with contextlib.suppress(Exception):
                    inputs = next(
                        (each for each in (*args, *kwargs.values()) if isinstance(each, dict) and CACHE in each), {}
                    )
                    call.cache = inputs.get(CACHE)
                    call.cached_tokens = max(int(call.cache.get_seq_length()), 0) if call.cache is not None else 0
            return result

        return prepare

    def _wrap_candidates(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def get(model: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                generator = original(model, *args, **kwargs)
            except BaseException as error:
                drop_own_frames(error)
                raise
            call = self._calls[-1] if self._calls else None
            if call is not None and not call.is_draft:
                with contextlib.suppress(Exception):
                    generator.update_candidate_strategy = _counting(call, generator.update_candidate_strategy)
                    call.is_assisted = True
            return generator

        return get

    def _wrap_criteria(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def decide(criteria: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                done = original(criteria, *args, **kwargs)
            except BaseException as error:
                drop_own_frames(error)
                raise
            call = self._calls[-1] if self._calls else None
            if call is not None and not call.is_draft:
                if not call.sampled:
                    self._enter(call, DECODE)
                call.mark(self._clock_ns())
                if any(type(each).__name__ not in COUNTED_CRITERIA for each in criteria):
                    call.done.append(done)
            return done

        return decide

    def _wrap_generate_batch(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Continuous batching: passes run in a thread of the library, and requests join and leave the batch."""

        def generate_batch(model: Any, *args: Any, **kwargs: Any) -> Any:
            start_ns = self._clock_ns()
            try:
                results = original(model, *args, **kwargs)
            except BaseException as error:
                drop_own_frames(error)
                raise
            with contextlib.suppress(Exception):
                self._record_results(list(results.values()), start_ns)
            return results

        return generate_batch

    def _record_results(self, results: Sequence[Any], start_ns: int) -> None:
        if not results:
            return
        end_ns, threads = self._clock_ns(), tuple(self._pass_threads)
        inputs = tuple(len(result.prompt_ids) for result in results)
        outputs = tuple(len(result.generated_tokens) for result in results)
        for log in self._logs():
            log.add(RequestBatch(inputs, outputs, start_ns, end_ns, log.take_stretches(start_ns, end_ns, threads)))

    def _wrap_pass(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def run(processor: Any, *args: Any, **kwargs: Any) -> Any:
            self._pass_threads.add(threading.get_ident())
            stage = PREFILL_AND_DECODE
            with contextlib.suppress(Exception):
                stage = pass_stage(processor.inputs_and_outputs.requests_in_batch)
            try:
                with self._stage(stage):
                    return original(processor, *args, **kwargs)
            except BaseException as error:
                drop_own_frames(error)
                raise

        return run


CACHE = "past_key_values"
CONTINUOUS_MODULE = "transformers.generation.continuous_batching.continuous_api"
PREFILL_AND_DECODE = "prefill+decode"  # one pass with prompts of some requests and the next tokens of others


def pass_stage(requests: Sequence[Any]) -> str:
    """Return the stage of one pass of continuous batching."""
    decodes = {str(getattr(each.state.status, "name", each.state.status)).upper() == "DECODING" for each in requests}
    return PREFILL_AND_DECODE if len(decodes) != 1 else DECODE if decodes.pop() else PREFILL


def _counting(call: GenerateCall, update: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the method that an assisted generation calls after each pass with the scores and the number of matches."""

    def count(input_ids: Any, scores: Any, num_matches: Any) -> Any:
        with contextlib.suppress(Exception):
            call.drafted += int(scores.shape[1]) - 1  # one position is the model's own
            call.matches.append(num_matches)
        return update(input_ids, scores, num_matches)

    return count


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
    ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
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


def tensor_bytes(value: Any) -> int:
    """Return the bytes of all tensors that a cache holds."""
    return sum({id(tensor): tensor.numel() * tensor.element_size() for tensor in _tensors(value, 5)}.values())


def _tensors(value: Any, depth: int) -> Iterator[Any]:
    if hasattr(value, "element_size") and hasattr(value, "numel"):
        yield value
    elif depth and isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors(item, depth - 1)
    elif depth and isinstance(value, dict):
        yield from _tensors(list(value.values()), depth)
    elif depth and type(value).__module__.partition(".")[0] in {"transformers", "optimum"}:
        yield from _tensors(list(vars(value).values()), depth - 1)
