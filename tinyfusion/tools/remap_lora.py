"""``tinyfusion remap-lora``: a LoRA adapter of the full model for a pruned one."""

from __future__ import annotations

from collections.abc import Sequence

from tinyfusion.tools.arguments import Parser


def main(argv: Sequence[str]) -> int:
    """Remap an adapter and print which modules were kept and dropped.

    Args:
        argv: arguments after ``tinyfusion remap-lora``.

    Returns:
        Exit status.

    Raises:
        InputError: see :func:`~tinyfusion.checkpoints.remap_lora`, or wrong arguments.
    """
    parser = Parser(
        "remap-lora",
        description="Carry a LoRA adapter that peft saved for the full model over to a pruned one.",
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="folder of the adapter")
    parser.add_argument("--model", required=True, help="the pruned model: folder, file or hub id")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an adapter at --output")
    given = parser.parse_args(argv)

    from tinyfusion.checkpoints.lora import remap_lora  # with torch, which --help does not need

    result = remap_lora(given.adapter, given.model, given.output, given.overwrite)
    total = len(result.renamed) + len(result.dropped)
    print(f"wrote {result.folder}: kept {len(result.renamed)} of {total} adapted modules")
    if result.dropped:
        blocks = ", ".join(map(str, result.dropped_blocks))
        print(f"their blocks are gone: {blocks}")
        print(f"dropped: {', '.join(result.dropped)}")
    net = f"tinyfusion.load({str(given.model)!r})"
    if any("transformer_blocks." in name for name in result.renamed):
        net = "pipeline.transformer"  # of the pruned model's diffusers export
    print(f"load: peft.PeftModel.from_pretrained({net}, {str(result.folder)!r})")
    return 0
