"""``python -m otca serve-reward``: a reward over HTTP, for trainings that name it by its address."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from otca.bounds import at_least, check_bound
from otca.config import TrainConfig
from otca.parser import make_parser, parse
from otca.rewards.wire import TOKEN


def parser() -> ArgumentParser:
    """What to serve, and where."""
    out = make_parser("serve-reward", f"Serve a reward over HTTP; the bearer token is read from {TOKEN}.")
    out.add_argument("name", type=str, help="reward, by name or as module:class")
    out.add_argument("--host", type=str, default="127.0.0.1", help="address to listen on; others than this need a token")
    out.add_argument("--port", type=int, default=8000, help="port to listen on; 0 takes a free one")
    out.add_argument("--max_body_mb", type=int, default=256, help="largest request body, in MB")
    out.add_argument("--device", type=str, default="cpu", help="where the reward's network lives, as cuda:0")
    out.add_argument("--reward_files", type=str, default="", help="folder of published rewards' files, FOLDER/<reward>/<file>")
    out.add_argument(
        "--reward_timeout", type=float, default=TrainConfig.reward_timeout, help="seconds a call may take; 0 is no limit"
    )
    out.add_argument(
        "--reward_fps", type=float, default=0.0, help="frames a second of videos whose request states none; 0 is the reward's own"
    )
    out.add_argument("--batch", type=int, default=16, help="samples that are scored in one call")
    return out


def run(argv: list[str]) -> None:
    """Load the reward, print the address, serve until stopped."""
    given = parse(parser(), argv)
    for name in ("max_body_mb", "batch"):
        check_bound(name, getattr(given, name), at_least(1))
    for name in ("reward_timeout", "reward_fps"):
        check_bound(name, getattr(given, name), at_least(0))
    from otca.distributed import usable_device
    from otca.rewards.base import build_reward
    from otca.rewards.wire import bearer_token
    from otca.serving import bound, make_app, serve

    token = bearer_token()
    with bound(given.host, given.port, token) as listener:  # before minutes of loading
        where = (usable_device(given.device), given.reward_files)
        reward = build_reward(given.name, *where, given.reward_timeout, given.reward_fps)
        app = make_app(reward, token, given.max_body_mb * 1_000_000, given.batch)
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/{reward.name}"
        listener.listen()  # who reads the line may connect at once
        print(f"serving {reward.name} at {address}", flush=True)
        serve(app, listener)
