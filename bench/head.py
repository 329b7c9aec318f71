"""What does the last layer of a language model take on a TPU or a GPU that is not here, by rows of a chunk?

`python -m bench.head [TARGET ...] [--out DIR]` compiles value and gradients by hidden states and kernel, in bfloat16,
for one device by rows of a chunk, and for meshes of several with what they send each other. Nothing runs: products and
bytes are counted in the compiled program (bench/hlo.py), and times are those counts over the peak rates of the device.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxloss
from bench.hlo import COLLECTIVES, PRODUCTS, Computation, Instruction, Program
from bench.targets import TARGETS, Target, compile_for, environment

SHAPES = [(32768, 4096, 128256), (32768, 2048, 262144)]  # rows, H, C
CARDS = ["tpu-v5e", "tpu-v6e", "h100", "b200"]
CHUNKS = [256, 512, 1024, 2048, 4096, 8192, None]
MESHES = {"tpu-v5e": (4, 4), "h100": (4, 2)}  # data, model
MESH_SHAPE = (65536, 4096, 128256)
CE = jaxloss.softmax_cross_entropy
Total = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def jaxloss_total(hidden, kernel, ids, chunk_rows=None, loss=CE, **names):
    return jaxloss.linear_loss(loss, hidden, kernel, ids, chunk_rows=chunk_rows, **names).mean()


def optax_total(hidden, kernel, ids):
    from optax import losses

    logits = jnp.dot(hidden, kernel, preferred_element_type=jnp.float32)
    return jnp.mean(losses.softmax_cross_entropy_with_integer_labels(logits, ids))


def tokamax_total(hidden, kernel, ids, form):
    import tokamax

    return tokamax.linear_softmax_cross_entropy_loss(hidden, ids, kernel, reduction="mean", implementation=form)


@contextmanager
def tokamax_for(target: Target) -> Iterator[None]:
    """tokamax asks the host what it supports, or else an abstract mesh."""
    import tokamax
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # or it reads the arguments of this program as its own
    kind = target.devices()[0].device_kind
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=1, platform=target.platform)
    mesh = jax.sharding.AbstractMesh((1,), ("all",), axis_types=(AxisType.Auto,), abstract_device=device)
    with tokamax.config.cross_compile(True), jax.sharding.use_abstract_mesh(mesh):
        yield


def providers(target: Target) -> Iterator[tuple[str, int | None, Total]]:
    for rows in CHUNKS:
        yield ("jaxloss" if rows else "jaxloss, default"), rows, partial(jaxloss_total, chunk_rows=rows)
    yield "optax, all logits", None, optax_total
    for form in ("chunked_xla", *(["mosaic_tpu"] if target.platform == "tpu" else [])):
        yield f"tokamax {form}", None, partial(tokamax_total, form=form)


def operations(i: Instruction, inside: Computation, program: Program) -> float:
    """Of the matrix products of an instruction: 2 b m k n, which is 2 sqrt((b m k) (b k n) (b m n) / b)."""
    if i.kind in ("dot", "convolution") or PRODUCTS.search(i.rest):
        first, second = inside.operands(i)[:2]
        batch = re.search(r"lhs_batch_dims=\{([\d,]+)\}", i.rest)
        sizes = [int(n) for n in re.search(r"\[([\d,]*)\]", first.shape)[1].split(",")] if batch else []
        batches = math.prod(sizes[int(n)] for n in batch[1].split(",")) if batch else 1
        return 2 * math.sqrt(first.elements * second.elements * i.arrays[0].elements / batches)
    parts = [program.computations[name] for name in i.called("calls")]
    return sum(operations(j, part, program) for part in parts for j in part.instructions.values())


def count(compiled: jax.stages.Compiled, target: Target) -> dict[str, Any]:
    """Products, bytes and temporary memory of a program, and its times by the peak rates of a target."""
    program = Program(compiled.as_text())
    flops = moved = slowest = 0.0
    for i, inside, times in program.executed:
        of_one, bytes_of_one = operations(i, inside, program), program.moved(i, inside)
        flops += times * of_one
        moved += times * bytes_of_one
        slowest += times * max(of_one / target.flops_per_s, bytes_of_one / target.bytes_per_s)
    return {
        "products": program.products,
        "flops": flops,
        "bytes": moved,
        "temporary": compiled.memory_analysis().temp_size_in_bytes,
        "products_s": flops / target.flops_per_s,
        "bytes_s": moved / target.bytes_per_s,
        "roofline_s": slowest,  # each kernel by the slower of its two times
        "chunks": max([program.turns(i) or 0 for i in loops(program)], default=1),
        "uncounted_loops": len(program.endless),
    }


def loops(program: Program) -> list[Instruction]:
    return [i for c in program.computations.values() for i in c.instructions.values() if i.kind == "while"]


def collectives(program: Program) -> list[dict[str, Any]]:
    """What is sent between devices, and whether in each turn of a loop; a TPU's reduce-scatter may be a fusion."""
    found = []
    for i, inside, times in program.executed:
        parts = [program.computations[name] for name in i.called("calls")]
        sent = [i, *(j for part in parts for j in part.instructions.values())]
        for j in sent:
            kind = j.kind.removesuffix("-start")
            if kind in COLLECTIVES:
                name = "reduce-scatter" if "all-reduce-scatter" in i.rest else kind
                operands = (parts[0] if j is not i else inside).operands(j)
                shapes = ", ".join(o.shape.split("{")[0] for o in operands)
                found.append({"kind": name, "operands": shapes, "times": times})
    return found


def on_one_device(target: Target) -> Iterator[dict[str, Any]]:
    for rows, width, classes in SHAPES:
        arrays = (
            jax.ShapeDtypeStruct((rows, width), jnp.bfloat16),
            jax.ShapeDtypeStruct((width, classes), jnp.bfloat16),
            jax.ShapeDtypeStruct((rows,), jnp.int32),
        )
        for provider, chunk_rows, total in providers(target):
            row = {
                "target": target.name,
                "shape": [rows, width, classes],
                "provider": provider,
                "chunk_rows": chunk_rows,
            }
            try:
                step = jax.value_and_grad(total, (0, 1))
                with tokamax_for(target) if "tokamax" in provider else nullcontext():
                    compiled = compile_for(target.mesh((1,), ("all",)), step, *arrays, specs=(P(),) * 3)
                yield row | count(compiled, target)
            except Exception as error:  # what is not installed, or what a compiler refuses
                yield row | {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}


def on_meshes(target: Target) -> Iterator[dict[str, Any]]:
    rows, width, classes = MESH_SHAPE
    arrays = (
        jax.ShapeDtypeStruct((rows, width), jnp.bfloat16),
        jax.ShapeDtypeStruct((width, classes), jnp.bfloat16),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    loss = partial(CE, axis_name="model")
    for kind, name in ((AxisType.Auto, "automatic"), (AxisType.Explicit, "explicit")):
        mesh = target.mesh(MESHES[target.name], ("data", "model"), kind)
        for spec in (P(None, "model"), P("data", "model")):
            names = {"batch_spec": "data", "axis_name": "model", "kernel_spec": spec} if kind == AxisType.Auto else {}
            step = jax.value_and_grad(partial(jaxloss_total, loss=loss, **names), (0, 1))
            with jax.set_mesh(mesh):
                compiled = compile_for(
                    mesh, step, *arrays, specs=(P("data"), spec, P("data")), out_specs=(P(), (P("data"), spec))
                )
            row = {"target": target.name, "mesh": list(MESHES[target.name]), "kind": name, "kernel": str(spec)}
            sent = collectives(Program(compiled.as_text()))
            yield row | {"shape": list(MESH_SHAPE)} | count(compiled, target) | {"collectives": sent}


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(rows: list[dict[str, Any]]) -> str:
    """Markdown tables: a line for each provider and number of rows, one for each mesh."""
    cells, meshes = [], []
    for r in rows:
        shape = " x ".join(map(str, r["shape"]))
        if "mesh" in r:
            sent = [f"{c['times']} {c['kind']} of {c['operands']}" for c in r["collectives"]]
            gib = f"{r['temporary'] / 2**30:.2f}"
            meshes.append([r["target"], r["kind"], r["kernel"], str(r["products"]), gib, "; ".join(sent)])
        elif "error" in r:
            cells.append([r["target"], shape, r["provider"], *["-"] * 7, r["error"]])
        else:
            name = r["provider"] + (f", {r['chunk_rows']}" if r["chunk_rows"] else "")
            cell = [r["target"], shape, name, str(r["chunks"]), str(r["products"]), f"{r['bytes'] / 1e9:.0f}"]
            memory = f"{r['temporary'] / 2**30:.2f}"
            times = [f"{1e3 * r[k]:.0f}" for k in ("products_s", "bytes_s", "roofline_s")]
            if r["flops"]:
                cells.append([*cell, memory, *times, f"{r['bytes_s'] / r['products_s']:.2f}"])
            else:  # in a kernel that the text does not show
                cells.append([*cell[:3], *["-"] * 3, memory, *["-"] * 4])
    head = ["target", "rows x H x C", "provider", "chunks", "products", "GB moved", "GiB temporary", "products, ms",
            "bytes, ms", "kernel by kernel, ms", "bytes / products"]  # fmt: skip
    mesh_head = ["target", "mesh", "kernel", "products", "GiB temporary, a device", "what is sent"]
    return "\n\n".join(table(*t) for t in ((head, cells), (mesh_head, meshes)) if t[1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.head", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", default=CARDS, help=f"of {', '.join(TARGETS)} (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="folder of the results (%(default)s)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.here:  # the compilers read their variables when JAX is imported
        command = [sys.executable, "-m", "bench.head", "--here", "--out", str(arguments.out), *arguments.targets]
        sys.exit(subprocess.run(command, env=os.environ | environment(), check=False).returncode)
    rows: list[dict[str, Any]] = []
    for name in arguments.targets:
        found = on_one_device(TARGETS[name]), on_meshes(TARGETS[name]) if name in MESHES else ()
        rows += [row for part in found for row in part]
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / f"head-{'-'.join(arguments.targets)}-jax{jax.__version__}"
    Path(f"{stem}.json").write_text(json.dumps(rows, indent=1) + "\n")
    Path(f"{stem}.md").write_text(report(rows) + "\n")
    print(report(rows))


if __name__ == "__main__":
    main()
