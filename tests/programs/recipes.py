"""Programs as people write them, whole: diffusion, adversaries, experts, adapters, autoencoders, teachers."""

import copy
import random

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from tests.programs.routing import mlp
from tests.programs.truth import Parts, program
from tests.programs.updates import update


def backward(parts, loss):
    parts.start("backward")
    loss.backward()
    parts.start("other")


def forward(parts, *call):
    """Call a model, which no variable here holds: it has the name that the program gave it."""
    parts.start("forward")
    y = call[0](*call[1:])
    parts.start("other")
    return y


@program(heavy=True)
def diffusion_unet(parts: Parts):
    """A U-Net learns the noise in an image at a random time; the weights' average follows, and samples now and then."""

    class Block(nn.Module):
        def __init__(self, into, out):
            super().__init__()
            self.norm = nn.GroupNorm(4, into)
            self.conv = nn.Conv2d(into, out, 3, padding=1)
            self.time = nn.Linear(32, out)

        def forward(self, x, t):
            return functional.silu(self.conv(self.norm(x)) + self.time(t)[:, :, None, None])

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
            self.entry = nn.Conv2d(3, 16, 3, padding=1)
            self.down = nn.ModuleList([Block(16, 32), Block(32, 48)])
            self.middle = Block(48, 48)
            self.up = nn.ModuleList([Block(96, 32), Block(64, 16)])
            self.leave = nn.Conv2d(16, 3, 3, padding=1)

        def forward(self, x, t):
            angles = t[:, None] * torch.logspace(0, 3, 8)
            t = self.embed(torch.cat((angles.sin(), angles.cos()), dim=1))
            x, skips = self.entry(x), []
            for block in self.down:
                x = block(x, t)
                skips.append(x)
                x = functional.avg_pool2d(x, 2)
            x = self.middle(x, t)
            for block in self.up:
                x = functional.interpolate(x, scale_factor=2.0)
                x = block(torch.cat((x, skips.pop()), dim=1), t)
            return self.leave(x)

    model = UNet()
    average = copy.deepcopy(model).requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    parts.count_both_ways(model, "model")
    parts.count(average, "average")
    parts.time("down", {f"model.down.{k}": block for k, block in enumerate(model.down)})
    parts.time("up", {f"model.up.{k}": block for k, block in enumerate(model.up)})

    def run():
        for step in parts.rounds(60):
            images, noise, t = torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16), torch.rand(4)
            noisy = (1 - t)[:, None, None, None] * images + t[:, None, None, None] * noise
            optimizer.zero_grad()
            loss = functional.mse_loss(forward(parts, model, noisy, t), noise)
            backward(parts, loss)
            update(parts, optimizer)
            parts.steps["train"] += 1
            with torch.no_grad():
                for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                    slow.lerp_(fast, 0.05)
            if step % 20 == 19:
                with torch.no_grad():
                    x = torch.randn(2, 3, 16, 16)
                    for k in range(4, 0, -1):
                        x = x - forward(parts, average, x, torch.full((2,), k / 4)) / 4
                        parts.steps["validation"] += 1
        print(f"{loss.item():.6f}")

    return {"model": model, "average": average}, run


@program(heavy=True)
def adversaries_with_penalty(parts: Parts):
    """Wasserstein GAN: three updates of the critic, whose gradient's norm is penalised, for one of the generator."""
    generator = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 128))
    critic = nn.Sequential(nn.Linear(128, 384), nn.Tanh(), nn.Linear(384, 1))
    of_generator = torch.optim.Adam(generator.parameters(), 1e-4)
    of_critic = torch.optim.Adam(critic.parameters(), 1e-4)
    parts.count(generator, "generator")
    parts.count(critic, "critic")

    def run():
        for _ in parts.rounds(60):
            for _ in range(3):
                real = torch.randn(64, 128)
                with torch.no_grad():
                    fake = forward(parts, generator, torch.randn(64, 32))
                between = torch.lerp(fake, real, torch.rand(64, 1)).requires_grad_()
                parts.start("forward")
                scores = critic(real), critic(fake), critic(between)
                parts.start("backward")
                (slope,) = torch.autograd.grad(scores[2].sum(), between, create_graph=True)
                parts.start("other")
                loss = scores[1].mean() - scores[0].mean() + 10 * (slope.norm(dim=1) - 1).square().mean()
                of_critic.zero_grad()
                backward(parts, loss)
                update(parts, of_critic)
                parts.steps["train"] += 1  # that of the generator shares a step with the last one
            of_generator.zero_grad()
            noise = torch.randn(64, 32)
            parts.start("forward")
            score = critic(generator(noise))
            parts.start("other")
            backward(parts, -score.mean())
            update(parts, of_generator)
        print(f"{loss.item():.6f}")

    return {"generator": generator, "critic": critic}, run


@program(counts=("forward",), heavy=True)
def lstm_in_pieces(parts: Parts):
    """A language model over long texts, whose state is cut from its history after sixteen tokens."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(64, 48)
            self.lstm = nn.LSTM(48, 96, num_layers=2, batch_first=True)
            self.drop = nn.Dropout(0.1)
            self.head = nn.Linear(96, 64)

        def forward(self, tokens, state):
            y, state = self.lstm(self.embed(tokens), state)
            return self.head(self.drop(y)), state

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    parts.count(model)

    def run():
        for _ in parts.rounds(11):
            text, state = torch.randint(0, 64, (16, 65)), None
            for begin in range(0, 64, 16):
                optimizer.zero_grad()
                parts.start("forward")
                y, state = model(text[:, begin : begin + 16], state)
                parts.start("other")
                loss = functional.cross_entropy(y.flatten(0, 1), text[:, begin + 1 : begin + 17].flatten())
                backward(parts, loss)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                update(parts, optimizer)
                state = tuple(each.detach() for each in state)
                parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return model, run


@program()
def experts_with_capacity(parts: Parts):
    """Two of six experts for each token, as many tokens as an expert has room for, in every second block."""

    class Experts(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.router = nn.Linear(width, 6)
            self.experts = nn.ModuleList(mlp(width, 2 * width) for _ in range(6))
            with torch.no_grad():
                self.router.bias.copy_(torch.tensor([2.0, 1.0, 0.5, 0.0, -1.5, -2.5]))

        def forward(self, x):
            weights, chosen = self.router(x).softmax(dim=-1).topk(2)
            y = torch.zeros_like(x)
            for k, expert in enumerate(self.experts):
                token, place = (chosen == k).nonzero(as_tuple=True)
                token, place = token[:8], place[:8]
                if len(token):
                    y = y.index_add(0, token, expert(x[token]) * weights[token, place, None])
            return y

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Experts(96) if k % 2 else mlp(96, 192) for k in range(4))
            self.head = nn.Linear(96, 8)

        def forward(self, x):
            for block in self.blocks:
                x = x + block(x)
            return self.head(x)

    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    parts.count_both_ways(model)
    parts.time("experts", {f"blocks.{k}": model.blocks[k] for k in (1, 3)})
    parts.time("dense", {f"blocks.{k}": model.blocks[k] for k in (0, 2)})

    def run():
        for _ in parts.rounds(90):
            optimizer.zero_grad()
            loss = forward(parts, model, torch.randn(12, 96)).square().mean()
            backward(parts, loss)
            update(parts, optimizer)
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return model, run


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@program()
def vision_with_stochastic_depth(parts: Parts):
    """A vision transformer: attention and perceptron of each block are left out by chance in training, not after it."""

    class Block(nn.Module):
        def __init__(self, keep):
            super().__init__()
            self.attention = Attention(64)
            self.perceptron = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 192), nn.GELU(), nn.Linear(192, 64))
            self.keep = keep

        def forward(self, x):
            for part in (self.attention, self.perceptron):
                if not self.training:
                    x = x + part(x)
                elif random.random() < self.keep:
                    x = x + part(x) / self.keep
            return x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 64, 4, stride=4)
            self.blocks = nn.Sequential(*(Block(1 - 0.1 * depth) for depth in range(5)))
            self.head = nn.Linear(64, 10)

        def forward(self, x):
            return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(dim=1))

    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    parts.count_both_ways(model)
    parts.time("attention", {f"blocks.{k}.attention": block.attention for k, block in enumerate(model.blocks)})
    parts.time("perceptron", {f"blocks.{k}.perceptron": block.perceptron for k, block in enumerate(model.blocks)})

    def run():
        for _ in parts.rounds(6):
            model.train()
            for _ in range(14):
                optimizer.zero_grad()
                y = forward(parts, model, torch.randn(8, 3, 16, 16))
                loss = functional.cross_entropy(y, torch.randint(0, 10, (8,)))
                backward(parts, loss)
                update(parts, optimizer)
                parts.steps["train"] += 1
            model.eval()
            with torch.no_grad():
                for _ in range(3):
                    forward(parts, model, torch.randn(8, 3, 16, 16))
                    parts.steps["validation"] += 1
        print(f"{loss.item():.6f}")

    return model, run


@program()
def adapters_in_a_frozen_transformer(parts: Parts):
    """Low-rank adapters beside the projections of a transformer whose own weights and embeddings do not learn."""

    class Adapted(nn.Module):
        def __init__(self, inner, rank=4):
            super().__init__()
            self.inner = inner.requires_grad_(requires_grad=False)
            self.down = nn.Linear(inner.in_features, rank, bias=False)
            self.up = nn.Linear(rank, inner.out_features, bias=False)

        def forward(self, x):
            return self.inner(x) + self.up(self.down(x))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention(64)
            self.perceptron = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))

        def forward(self, x):
            x = x + self.attention(x)
            return x + self.perceptron(x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(128, 64)
            self.blocks = nn.ModuleList(Block() for _ in range(4))
            self.head = nn.Linear(64, 128)

        def forward(self, tokens):
            x = self.embed(tokens)
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    model = Net().requires_grad_(requires_grad=False)
    for block in model.blocks:
        block.attention.qkv, block.attention.out = Adapted(block.attention.qkv), Adapted(block.attention.out)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    parts.count_both_ways(model)
    parts.time("attention", {f"blocks.{k}.attention": block.attention for k, block in enumerate(model.blocks)})

    def run():
        for _ in parts.rounds(65):
            tokens = torch.randint(0, 128, (8, 17))
            optimizer.zero_grad()
            y = forward(parts, model, tokens[:, :-1])
            loss = functional.cross_entropy(y.flatten(0, 1), tokens[:, 1:].flatten())
            backward(parts, loss)
            update(parts, optimizer)
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return model, run


@program(heavy=True)
def autoencoder_with_several_losses(parts: Parts):
    """A variational autoencoder whose images a frozen net compares; its two losses have a backward pass each."""
    encoder = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 32))
    decoder = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 256), nn.Unflatten(1, (1, 16, 16)))
    judge = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    judge.requires_grad_(requires_grad=False)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-3)
    models = {"encoder": encoder, "decoder": decoder, "judge": judge}
    for name, model in models.items():
        parts.count_both_ways(model, name)

    def run():
        for _ in parts.rounds(110):
            x = torch.rand(16, 1, 16, 16)
            optimizer.zero_grad()
            mean, log_variance = forward(parts, encoder, x).chunk(2, dim=1)
            kl = (mean.square() + log_variance.exp() - log_variance - 1).mean()
            z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
            y = forward(parts, decoder, z)
            parts.start("forward")
            with torch.no_grad():
                wanted = judge(x)
            seen = judge(y)
            parts.start("backward")
            (0.1 * kl).backward(retain_graph=True)
            parts.start("other")
            loss = functional.mse_loss(y, x) + functional.l1_loss(seen, wanted)
            backward(parts, loss)
            update(parts, optimizer)
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return models, run


@program()
def triplets(parts: Parts):
    """One encoder runs three times before a backward pass; where the triplet is easy, nothing is learnt from it."""
    encoder = nn.Sequential(nn.Linear(128, 384), nn.ReLU(), nn.Linear(384, 384), nn.ReLU(), nn.Linear(384, 32))
    optimizer = torch.optim.SGD(encoder.parameters(), 1e-3)
    parts.count_both_ways(encoder)

    def run():
        for step in parts.rounds(120):
            batches = [torch.randn(24, 128) for _ in range(3)]
            parts.start("forward")
            anchor, near, far = map(encoder, batches)
            parts.start("other")
            loss = functional.triplet_margin_loss(anchor, near, far)
            if step % 4 == 1:
                continue
            optimizer.zero_grad()
            backward(parts, loss)
            update(parts, optimizer)
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return encoder, run


@program(heavy=True)
def teacher_follows_its_student(parts: Parts):
    """Mean teacher: a few labelled samples and many without; the weights' average teaches, and is evaluated."""
    student = nn.Sequential(nn.Linear(64, 320), nn.BatchNorm1d(320), nn.ReLU(), nn.Dropout(0.2), nn.Linear(320, 10))
    teacher = copy.deepcopy(student).requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW(student.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    parts.count(student, "student")
    parts.count(teacher, "teacher")

    def train(x, labels):
        optimizer.zero_grad()
        y = forward(parts, student, x)
        with torch.no_grad():
            wanted = forward(parts, teacher, x + 0.1 * torch.randn_like(x)).softmax(dim=1)
        loss = functional.cross_entropy(y[:8], labels[:8]) + functional.mse_loss(y.softmax(dim=1), wanted)
        backward(parts, loss)
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        update(parts, optimizer)
        schedule.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 0.01)
        parts.steps["train"] += 1
        return loss

    def run():
        data = TensorDataset(torch.randn(1280, 64), torch.randint(0, 10, (1280,)))
        for _ in parts.rounds(6):
            student.train()
            for x, labels in parts.fetched(DataLoader(data, batch_size=64, shuffle=True)):
                loss = train(x, labels)
            student.eval()
            with torch.no_grad():
                for x, _ in parts.fetched(DataLoader(data, batch_size=256)):
                    for model in (student, teacher):
                        forward(parts, model, x)
                        parts.steps["validation"] += 1
        print(f"{loss.item():.6f}")

    return {"student": student, "teacher": teacher}, run


@program(heavy=True)
def accumulation_clipped(parts: Parts):
    """Batches of different sizes until enough samples have come, then clipping, a step and a warm-up of its size."""
    model = nn.Sequential(nn.Linear(96, 384), nn.LayerNorm(384), nn.GELU(), nn.Linear(384, 96))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer)
    parts.count_both_ways(model)

    def run():
        for _ in parts.rounds(60):
            samples = 0
            while samples < 64:
                n = random.choice((8, 16, 40))
                loss = forward(parts, model, torch.randn(n, 96)).square().mean() * n / 64
                backward(parts, loss)
                samples += n
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            update(parts, optimizer)
            optimizer.zero_grad()
            schedule.step()
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return model, run
