"""Reading back what sinks have written: event files of TensorBoard, offline files of W&B."""

import json
import struct

from tensorboardX.proto.event_pb2 import Event

from rlx.run.tensorboard import record


def events(folder):
    """All events of the event files of a folder, in the order of their names."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack("<Q", content[at : at + 8])
            body = content[at + 12 : at + 12 + length]
            assert record(body) == content[at : at + 16 + length]
            found.append(Event.FromString(body))
            at += 16 + length
    return found


def scalars(folder, tag):
    values = [(event.step, value) for event in events(folder) for value in event.summary.value if value.tag == tag]
    return [(step, value.simple_value) for step, value in values]


def images(folder, tag):
    values = [(event.step, value) for event in events(folder) for value in event.summary.value if value.tag == tag]
    return [(step, value.image.encoded_image_string[:4]) for step, value in values]


def wandb_rows(folder):
    """The history of every offline file below a folder, in the order of their names: the rows as dictionaries."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportMissingImports]

    found = []
    for path in sorted(folder.rglob("run-*.wandb")):
        content, at, whole = path.read_bytes(), 7, b""
        while at + 7 <= len(content):  # LevelDB's log: blocks of 32 KiB, records that may be in parts
            if (left := 32768 - at % 32768) < 7:
                at += left
                continue
            length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
            whole += content[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):
                message, whole = Record.FromString(whole), b""
                if message.HasField("history"):
                    items = message.history.item
                    found.append({x.key or x.nested_key[0]: json.loads(x.value_json) for x in items})
    return found
