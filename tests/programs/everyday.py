"""What people run every day: convolutions, recurrent nets, loaders, environments, servers, threads."""

import multiprocessing
import threading
import time
import warnings

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.programs.truth import Parts, program


def train_step(parts, model, optimizer, x, loss_of):
    optimizer.zero_grad()
    parts.start("forward")
    y = model(x)
    parts.start("other")
    loss = loss_of(y)
    parts.start("backward")
    loss.backward()
    parts.start("optimizer")
    optimizer.step()
    parts.start("other")
    parts.steps["train"] += 1
    return loss


def energy_of(y):
    return y.square().mean()


def convolution(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))


@program()
def convolutions(parts: Parts):
    """A small CNN with batch normalisation."""
    model = nn.Sequential(
        convolution(3, 16), convolution(16, 32), convolution(32, 64), nn.Flatten(), nn.Linear(64 * 16, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    parts.count(model)
    parts.time("Conv2d", {"1.0": model[1][0], "2.0": model[2][0]})
    parts.time("BatchNorm2d", {f"{n}.1": model[n][1] for n in range(3)})
    parts.time("MaxPool2d", {f"{n}.3": model[n][3] for n in range(3)})

    def run():
        for _ in parts.rounds(28):
            loss = train_step(parts, model, optimizer, torch.randn(16, 3, 32, 32), energy_of)
        print(f"{loss.item():.6f}")

    return model, run


class Tagger(nn.Module):
    """Embedding, LSTM over packed sequences of different lengths, and a head."""

    def __init__(self):
        super().__init__()
        self.tokens, self.lstm, self.head = nn.Embedding(200, 64), nn.LSTM(64, 96, batch_first=True), nn.Linear(96, 8)

    def forward(self, batch):
        x, lengths = batch
        packed = pack_padded_sequence(self.tokens(x), lengths, batch_first=True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.head(y)


@program()
def packed_sequences(parts: Parts):
    """An LSTM; each batch has other lengths."""
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters())
    parts.count(model)

    def run():
        for _ in parts.rounds(28):
            lengths = torch.randint(8, 40, (16,))
            loss = train_step(parts, model, optimizer, (torch.randint(0, 200, (16, 40)), lengths), energy_of)
        print(f"{loss.item():.6f}")

    return model, run


class Cell(nn.Module):
    """One module that runs many times in a forward pass."""

    def __init__(self, width):
        super().__init__()
        self.mix, self.act = nn.Linear(2 * width, width), nn.Tanh()

    def forward(self, x, state):
        return self.act(self.mix(torch.cat([x, state], dim=1)))


@program()
def recurrent_by_hand(parts: Parts):
    """A recurrent net written out: the same cell eight to sixteen times a step."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = Cell(128), nn.Linear(128, 8)
            self.first = nn.Parameter(torch.zeros(128))

        def forward(self, x):
            state = self.first.expand(x.shape[1], -1)
            for row in x:
                state = self.cell(row, state)
            return self.head(state)

    model = Net()
    optimizer = torch.optim.RMSprop(model.parameters())
    parts.count(model)

    def run():
        for step in parts.rounds(100):
            loss = train_step(parts, model, optimizer, torch.randn(8 + step % 9, 32, 128), energy_of)
        print(f"{loss.item():.6f}")

    return model, run


class Standardize(nn.Module):
    """A transform that is a module, as those of torchvision are."""

    def forward(self, x):
        return (x - x.mean()) / x.std()


class Blur(nn.Module):
    """Another one."""

    def forward(self, x):
        return nn.functional.avg_pool2d(x, 3, stride=1, padding=1)


class Chain:
    """Calls one transform after the other, and is no module itself."""

    def __init__(self, *transforms):
        self.transforms = transforms

    def __call__(self, x):
        for t in self.transforms:
            x = t(x)
        return x


class Images(torch.utils.data.Dataset):
    """Images that are made and transformed when they are asked for."""

    def __init__(self, n):
        self.n, self.chain = n, Chain(Standardize(), Blur())

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        image = torch.randn(1, 48, 48, generator=torch.Generator().manual_seed(index))
        return self.chain(image).flatten(), index % 10


def loaded(parts, workers, n):
    model = nn.Sequential(nn.Linear(48 * 48, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    parts.count(model)

    def run():
        images = Images(16 * len(parts.rounds(n)))
        batches = torch.utils.data.DataLoader(images, batch_size=16, num_workers=workers)
        for x, labels in parts.fetched(batches):
            loss = train_step(
                parts, model, optimizer, x, lambda y, labels=labels: nn.functional.cross_entropy(y, labels)
            )
        print(f"{loss.item():.6f}")

    return {"": model}, run


@program()
def loader_with_module_transforms(parts: Parts):
    """A data set whose transforms are modules, loaded in the program's own process."""
    return loaded(parts, 0, 90)


@program(waits=True)
def loader_with_workers(parts: Parts):
    """The same in two worker processes."""
    return loaded(parts, 2, 130)


def environment(pipe):
    """Answer actions with states and rewards until there are no more: a process of its own."""
    generator = torch.Generator().manual_seed(0)
    state = torch.zeros(16)
    while (action := pipe.recv()) is not None:
        state = (0.9 * state + 0.1 * torch.randn(16, generator=generator)).roll(action)
        pipe.send((state.tolist(), float(state[0] > 0)))


@program(waits=True)
def reinforcement(parts: Parts):
    """REINFORCE with an environment in a process of its own: twenty calls of the policy for one step."""
    policy = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 4))
    optimizer = torch.optim.Adam(policy.parameters())
    parts.count(policy)

    def run():
        pipe, other_end = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=environment, args=(other_end,), daemon=True)
        process.start()
        for _ in parts.rounds(40):
            state, chosen, rewards = [0.0] * 16, [], []
            for _ in range(20):
                x = torch.tensor([state])
                parts.start("forward")
                y = policy(x)
                parts.start("other")
                spread = torch.distributions.Categorical(logits=y)
                action = spread.sample()
                chosen.append(spread.log_prob(action))
                pipe.send(int(action))
                state, reward = pipe.recv()
                rewards.append(reward)
            optimizer.zero_grad()
            loss = -(torch.cat(chosen) * (torch.tensor(rewards) - 0.5)).sum()
            parts.start("backward")
            loss.backward()
            parts.start("optimizer")
            optimizer.step()
            parts.start("other")
            parts.steps["train"] += 1
        pipe.send(None)
        process.join()
        print(f"{loss.item():.6f}")

    return policy, run


@program()
def quantized_inference(parts: Parts):
    """Linear layers with weights of eight bits, made by `quantize_dynamic`."""
    model = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in many programs
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    parts.count(model)

    @torch.inference_mode()
    def run():
        for _ in parts.rounds(220):
            x = torch.randn(64, 512)
            parts.start("forward")
            y = model(x)
            parts.start("other")
            y.argmax(dim=-1)
            parts.steps["inference"] += 1
        print(f"{y.sum().item():.3f}")

    return model, run


@program()
def evaluation_with_loader(parts: Parts):
    """A finished model answers the batches of a loader, without gradients."""
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)).eval()
    parts.count(model)

    @torch.no_grad()
    def run():
        right, batches = 0, len(parts.rounds(500))
        data = torch.utils.data.TensorDataset(torch.randn(16 * batches, 64), torch.randint(0, 10, (16 * batches,)))
        for x, labels in parts.fetched(torch.utils.data.DataLoader(data, batch_size=16)):
            parts.start("forward")
            y = model(x)
            parts.start("other")
            right += int((y.argmax(dim=-1) == labels).sum())
            parts.steps["inference"] += 1
        print(right)

    return model, run


@program(waits=True)
def server(parts: Parts):
    """Requests of one to 32 samples from a queue, with short waits between."""
    model = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 16)).eval()
    parts.count(model)

    @torch.inference_mode()
    def run():
        for request in parts.rounds(180):
            x = torch.randn(1 + 7 * request % 32, 256)
            parts.start("forward")
            y = model(x)
            parts.start("other")
            y.softmax(dim=-1).tolist()
            parts.steps["inference"] += 1
            if request % 8 == 0:
                time.sleep(0.002)
        print(f"{y.sum().item():.4f}")

    return model, run


@program()
def threads(parts: Parts):
    """Two threads train a model each at the same time."""
    models = nn.ModuleList(nn.Sequential(nn.Linear(256, 768), nn.ReLU(), nn.Linear(768, 256)) for _ in range(2))
    apart = [Parts(parts.length, parts.clock) for _ in models]
    for n, (each, model) in enumerate(zip(apart, models, strict=True)):
        each.count(model, str(n))

    def train(each, model):
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        each.restart()
        for _ in each.rounds(70):
            train_step(each, model, optimizer, torch.ones(64, 256), energy_of)

    def run():
        workers = [threading.Thread(target=train, args=pair) for pair in zip(apart, models, strict=True)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        parts.restart()
        for each in apart:
            parts.add(each)
        print(parts.steps["train"])

    return models, run


@program()
def forward_called_directly(parts: Parts):
    """`model.forward(x)` instead of `model(x)`: the model itself is never called, its layers are."""
    model = nn.Sequential(nn.Linear(128, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    optimizer = torch.optim.AdamW(model.parameters())
    for name, child in model.named_children():
        parts.count(child, name)

    def run():
        for _ in parts.rounds(110):
            loss = train_step(parts, model.forward, optimizer, torch.randn(64, 128), energy_of)
        print(f"{loss.item():.6f}")

    return model, run


@program()
def two_sizes_of_input(parts: Parts):
    """Big and small batches by turns: one step in two takes five times as long."""
    model = nn.Sequential(nn.Linear(128, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    parts.count(model)

    def run():
        for step in parts.rounds(120):
            loss = train_step(parts, model, optimizer, torch.randn(160 if step % 2 else 16, 128), energy_of)
        print(f"{loss.item():.6f}")

    return model, run


class TooBigError(RuntimeError):
    """What the fragile layer raises."""


class Fragile(nn.Module):
    """Raises where a batch is too big."""

    def forward(self, x):
        if len(x) > 96:
            raise TooBigError(f"{len(x)} samples")
        return x


@program()
def step_that_is_retried(parts: Parts):
    """Every tenth batch is too big, fails in the middle of forward, and is trained in halves."""
    model = nn.Sequential(nn.Linear(128, 512), nn.ReLU(), Fragile(), nn.Linear(512, 10))
    optimizer = torch.optim.AdamW(model.parameters())
    parts.count(model)

    def attempt(batches):
        graded = parts.graded_calls.copy()
        optimizer.zero_grad()
        try:
            for x in batches:
                parts.start("forward")
                y = model(x)
                parts.start("other")
                loss = energy_of(y)
                parts.start("backward")
                loss.backward()
                parts.start("other")
        except TooBigError:
            parts.start("other")
            parts.graded_calls.clear()
            parts.graded_calls.update(graded)  # no backward pass follows the calls of this attempt
            return None
        parts.start("optimizer")
        optimizer.step()
        parts.start("other")
        parts.steps["train"] += 1
        return loss

    def run():
        failed = 0
        for step in parts.rounds(150):
            x = torch.randn(128 if step % 10 == 9 else 64, 128)
            loss = attempt([x])
            if loss is None:
                failed += 1
                loss = attempt(x.chunk(2))
        print(f"{loss.item():.6f} {failed}")

    return model, run
