"""Stream AC and AVG as loops in numpy over an environment of Gymnasium: one stream, one step after another.

    python benchmarks/peers/numpy_streams.py stream_ac 3000

Prints the environment steps a second, those a second of processor time, and the mean return of the last ten episodes.
"""

import sys
import time
from collections.abc import Callable
from itertools import pairwise

import gymnasium
import numpy as np

F = np.float32


class Net:
    """Two layers and a head; with `unit` features of length 1, else layer norm without parameters in each layer."""

    def __init__(self, rng: np.random.Generator, inputs: int, hidden: int, outputs: int, unit: bool):
        sizes, self.unit = (inputs, hidden, hidden, outputs), unit
        self.params = []
        for n, m in pairwise(sizes):
            w = rng.uniform(-1, 1, size=(n, m)) / np.sqrt(n)
            if not unit:
                ranks = np.argsort(np.argsort(rng.random((n, m)), axis=0), axis=0)
                w[ranks < min(np.ceil(0.9 * n), n - 1)] = 0
            self.params += [w.astype(F), np.zeros(m, F)]

    def forward(self, x):
        self.inputs, self.slopes, self.stds = [], [], []
        for i in (0, 2):
            self.inputs.append(x)
            h = x @ self.params[i] + self.params[i + 1]
            if not self.unit:
                std = np.sqrt(h.var() + F(1e-6))
                h = (h - h.mean()) / std
                self.stds.append((std, h))
            slope = np.where(h > 0, F(1), F(0.01))
            self.slopes.append(slope)
            x = h * slope
        if self.unit:
            self.length = np.sqrt((x * x).sum() + F(1e-16))
            x = x / self.length
        self.inputs.append(x)
        return x @ self.params[4] + self.params[5]

    def backward(self, out):
        """Gradients of the parameters and of the input, for that of the outputs at the last forward pass."""
        x = self.inputs[2]
        grads, back = [np.outer(x, out), out], self.params[4] @ out
        if self.unit:
            back = (back - x * (x @ back)) / self.length
        for i in (1, 0):
            back = back * self.slopes[i]
            if not self.unit:
                std, h = self.stds[i]
                back = (back - back.mean() - h * (h * back).mean()) / std
            grads = [np.outer(self.inputs[i], back), back, *grads]
            back = self.params[2 * i] @ back
        return grads, back


class Running:
    """Mean and variance of everything so far."""

    def __init__(self, shape=()):
        self.mean, self.sum, self.count = np.zeros(shape), np.zeros(shape), 0

    def add(self, x):
        self.count += 1
        delta = x - self.mean
        self.mean = self.mean + delta / self.count
        self.sum = self.sum + delta * (x - self.mean)

    @property
    def variance(self):
        return self.sum / self.count

    def normalized(self, x):
        self.add(x)
        return np.clip((x - self.mean) / np.sqrt(self.variance + 1e-8), -10, 10).astype(F)


def obgd(params, trace, error, kappa):
    norm = sum(np.abs(z).sum() for z in trace)
    step = F(error / max(kappa * max(abs(error), 1.0) * norm, 1.0))
    for w, z in zip(params, trace, strict=True):
        w += step * z


def stream_ac(num_steps: int, hidden: int = 128) -> list[float]:
    env, rng = gymnasium.make("CartPole-v1"), np.random.default_rng(0)
    actor, critic = Net(rng, 4, hidden, 2, False), Net(rng, 4, hidden, 1, False)
    traces = [[np.zeros_like(w) for w in net.params] for net in (actor, critic)]
    seen, scale, total, returns, decay = Running(4), Running(), 0.0, [0.0], F(0.99 * 0.8)
    obs = seen.normalized(env.reset(seed=0)[0])
    for _ in range(num_steps):
        logits = actor.forward(obs)
        probs = np.exp(logits - logits.max())
        probs /= probs.sum()
        action = int(rng.random() > probs[0])
        raw, reward, terminated, truncated, _ = env.step(action)
        next_obs = seen.normalized(raw)
        returns[-1] += reward
        total = reward + 0.99 * total
        scale.add(total)
        scaled = np.clip(reward / np.sqrt(scale.variance + 1e-8), -10, 10)
        next_value = 0.0 if terminated else critic.forward(next_obs)[0]
        error = scaled + 0.99 * next_value - critic.forward(obs)[0]
        log_p = np.log(probs)
        entropy = -(probs * log_p).sum()
        out = np.eye(2, dtype=F)[action] - probs - 0.01 * np.sign(error) * probs * (log_p + entropy)
        grads = actor.backward(out.astype(F))[0], critic.backward(np.ones(1, F))[0]
        for net, trace, grad, kappa in zip((actor, critic), traces, grads, (3.0, 2.0), strict=True):
            for z, g in zip(trace, grad, strict=True):
                z *= decay
                z += g
            obgd(net.params, trace, error, kappa)
        obs = next_obs
        if terminated or truncated:
            for z in traces[0] + traces[1]:
                z[:] = 0
            total, obs = 0.0, seen.normalized(env.reset()[0])
            returns.append(0.0)
    return returns[:-1]


class Adam:
    """Without the first moment."""

    def __init__(self, params, rate):
        self.params, self.rate, self.squares, self.count = params, rate, [np.zeros_like(w) for w in params], 0

    def step(self, grads):
        self.count += 1
        unbiased = F(1 - 0.999**self.count)
        for w, v, g in zip(self.params, self.squares, grads, strict=True):
            v *= F(0.999)
            v += F(0.001) * g * g
            w -= F(self.rate) * g / np.sqrt(v / unbiased + F(1e-16))


def avg(num_steps: int, hidden: int = 64, rates: tuple = (3e-3, 1e-3), alpha: float = 0.3) -> list[float]:
    env, rng = gymnasium.make("Pendulum-v1"), np.random.default_rng(0)
    actor, critic = Net(rng, 3, hidden, 2, True), Net(rng, 4, hidden, 1, True)
    optimizers = Adam(actor.params, rates[0]), Adam(critic.params, rates[1])
    seen, rewards, discounts, squares = Running(3), Running(), Running(), Running()
    total, returns = 0.0, [0.0]

    def drawn(obs):
        mean, log_std = actor.forward(obs)
        noise, log_std = rng.normal(), np.clip(log_std, -10, 2)
        u = mean + np.exp(log_std) * noise
        det = 2 * (np.log(2) - u - np.logaddexp(0, -2 * u))
        return np.tanh(u), noise, log_std, -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi) - det

    obs = seen.normalized(env.reset(seed=0)[0])
    for _ in range(num_steps):
        action, noise, log_std, log_prob = drawn(obs)
        raw, reward, terminated, truncated, _ = env.step(np.array([2 * action]))
        next_obs, paid = seen.normalized(raw), reward - alpha * log_prob
        returns[-1] += reward
        total += paid
        rewards.add(paid)
        discounts.add(0.0 if terminated or truncated else 0.99)
        if terminated or truncated:
            squares.add(total**2)
            total = 0.0
        spread = max(rewards.variance + discounts.variance * squares.mean, 1e-4)
        sigma = 1.0 if spread <= 0.01 and not squares.count else np.sqrt(spread)
        next_action, _, _, next_log_prob = drawn(next_obs)
        after = critic.forward(np.append(next_obs, F(next_action)))[0] - alpha * next_log_prob
        target = reward + 0.99 * (0.0 if terminated else after)
        error = target - critic.forward(np.append(obs, F(action)))[0]
        critic_grads = critic.backward(np.array([-2 * error / sigma**2], F))[0]
        slope = critic.backward(np.ones(1, F))[1][-1]
        actor.forward(obs)
        of_u = alpha * 2 * action - slope * (1 - action**2)  # of alpha log pi, whose determinant has slope -2 tanh
        actor_grads = actor.backward(np.array([of_u, of_u * np.exp(log_std) * noise - alpha], F))[0]
        optimizers[0].step(actor_grads)
        optimizers[1].step(critic_grads)
        obs = next_obs
        if terminated or truncated:
            obs = seen.normalized(env.reset()[0])
            returns.append(0.0)
    return returns[:-1]


LOOPS: dict[str, Callable] = {"stream_ac": stream_ac, "avg": avg}

if __name__ == "__main__":
    steps, wall, cpu = int(sys.argv[2]), time.perf_counter(), time.process_time()
    returns = LOOPS[sys.argv[1]](steps, *map(int, sys.argv[3:]))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{steps / wall:.1f} {steps / cpu:.1f} {np.mean(returns[-10:]):.1f}")
