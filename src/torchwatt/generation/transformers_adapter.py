"""Stages and tokens of transformers' `generate`, in versions 4.46 to 5.x.

One call of `generate` is a batch of requests. Its stage is `prefill` until the first token is sampled, `decode` after
it; `encode` while the encoder of an encoder-decoder model runs, `draft` while an assistant generates. Tokens are
counted from the tensors that go in and come out.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torchwatt.core.requests import RequestBatch
from torchwatt.core.terms import DECODE, DRAFT, ENCODE, PREFILL
from torchwatt.core.trace import ModelSize
from torchwatt.generation.generate_call import (
    COUNTED_CRITERIA,
    Counts,
    GenerateCall,
    count_tokens,
    given_ids,
    measure_model,
    tensor_bytes,
)
from torchwatt.generation.request_log import RequestLog

GENERATION_MODULE = "transformers.generation.utils"
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
ENCODERS = ("_prepare_encoder_decoder_kwargs_for_generation", "_prepare_text_encoder_decoder_kwargs_for_generation")


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
        self._sizes: weakref.WeakKeyDictionary[Any, ModelSize] = weakref.WeakKeyDictionary()

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

    @property
    def _main_call(self) -> GenerateCall | None:
        """The call in progress on this thread; None outside of one, and in one of an assistant."""
        calls = self._calls
        return calls[-1] if calls and not calls[-1].is_draft else None

    def _wrap_generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
            call = self._begin(model)
            if call is not None:
                with contextlib.suppress(Exception):
                    call.sequences = int(given_ids(args, kwargs).shape[0])
            try:
                result = original(model, *args, **kwargs)
            except BaseException:
                self._end(call, None, args, kwargs)
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
                ),
                id(call),
            )
        self._record_model(call.model)

    def _record_model(self, model: Any) -> None:
        """Record the size of a model that generated; it is counted at its first call."""
        with contextlib.suppress(Exception):
            size = self._sizes.get(model)
            if size is None:
                size = self._sizes[model] = measure_model(model)
            for log in self._logs():
                log.add_model(size)

    def _wrap_encoder(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def prepare(model: Any, *args: Any, **kwargs: Any) -> Any:
            with self._stage(ENCODE) if self._main_call is not None else contextlib.nullcontext():
                return original(model, *args, **kwargs)

        return prepare

    def _wrap_cache(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def prepare(model: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(model, *args, **kwargs)
            call = self._main_call
            if call is not None:
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
            generator = original(model, *args, **kwargs)
            call = self._main_call
            if call is not None:
                with contextlib.suppress(Exception):
                    generator.update_candidate_strategy = _counting(call, generator.update_candidate_strategy)
                    call.is_assisted = True
            return generator

        return get

    def _wrap_criteria(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def decide(criteria: Any, *args: Any, **kwargs: Any) -> Any:
            done = original(criteria, *args, **kwargs)
            call = self._main_call
            if call is not None:
                if not call.sampled:
                    self._enter(call, DECODE)
                call.mark(self._clock_ns())
                for log in self._logs():
                    log.count_live(id(call), call.sampled * call.sequences)
                if any(type(each).__name__ not in COUNTED_CRITERIA for each in criteria):
                    call.done.append(done)
            return done

        return decide

    def _wrap_generate_batch(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Continuous batching: passes run in a thread of the library, and requests join and leave the batch."""

        def generate_batch(model: Any, *args: Any, **kwargs: Any) -> Any:
            start_ns = self._clock_ns()
            results = original(model, *args, **kwargs)
            with contextlib.suppress(Exception):
                self._record_results(list(results.values()), start_ns)
            self._record_model(model)
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
            with self._stage(stage):
                return original(processor, *args, **kwargs)

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
