"""What options of ours are called elsewhere."""

import difflib
from collections.abc import Collection

# The words of other projects, and what to type here; of several, the first that a script has.
SYNONYMS = {
    "--epochs --epoch -e --n-epochs --max-epochs": ["--num-epochs N"],
    "--lr --learningrate -lr -l --base-lr": ["--learning-rate RATE"],
    "--batch --bs -b --batchsize --train-batch-size": ["--batch-size N"],
    "--resume --continue --restart --load-checkpoint": ["--load-model true"],
    "--amp --fp16 --half --bf16 --mixed-precision --dtype": [
        "--precision bf16 (fp16, fp32; auto by default)"
    ],
    "--img-size --image-size --imgsz --size --resolution --input-size --img-sz --crop-size": [
        "--image-height H --image-width W"
    ],
    "--img-height --height -H": ["--image-height H"],
    "--img-width --width -W": ["--image-width W"],
    "--scale": ["--image-height H --image-width W"],
    "--data --dataset --data-dir --data-path --data-root --root --dataroot --train-dir "
    "--images-dir --img-dir": [
        "--train-img-dir, --train-mask-dir, --val-img-dir and --val-mask-dir",
        "--images DIR --masks DIR",
        "--img DIR",
    ],
    "--masks --mask-dir --masks-dir --label-dir --labels": ["--train-mask-dir DIR", "--masks DIR"],
    "--val --val-dir --validation --valid-dir --val-data": [
        "--val-img-dir DIR --val-mask-dir DIR",
        "--val-fraction SHARE",
    ],
    "--validation-split --val-split --val-percent --split -v": [
        "--val-fraction SHARE",
        "--val-img-dir DIR, which prepare_data.py --val-fraction fills",
    ],
    "--workers --n-workers --num-worker -j --num-threads": ["--num-workers N"],
    "--gpu --gpus --cuda --no-cuda --use-cuda --cpu --accelerator": ["--device cuda (or cpu)"],
    "--weights --checkpoint --ckpt --pretrained --load --finetune --init --model-path -f -m": [
        "--model FILE",
        "--init-weights FILE to start from it, or --load-model true to resume --checkpoint-file",
    ],
    "--num-classes --n-classes --nc --nclass -c": ["--classes NAME NAME ..., their names"],
    "--output --output-dir --out-dir --save-dir --log-dir --logdir --exp-dir --results -o": [
        "--out DIR",
        "--saved-images-dir DIR, and --checkpoint-file FILE for the checkpoint",
    ],
    "--save-path --save-model --ckpt-path": ["--checkpoint-file FILE"],
    "--input --image --images --photo --photos --source -i": ["--img PATH"],
    "--optim --opt": ["--optimizer adam (or muon)"],
    "--scheduler --lr-scheduler --lr-schedule": ["--schedule cosine (or linear, quadratic)"],
    "--wd --decay --l2": ["--weight-decay W"],
    "--grad-clip --clip --clip-grad --max-grad-norm --gradient-clip-val --gradient-clipping": [
        "--clip-gradient NORM"
    ],
    "--grad-accum --accumulate-grad-batches --gradient-accumulation-steps --accum": [
        "--accumulate N"
    ],
    "--early-stopping --early-stop": ["--patience EPOCHS"],
    "--criterion --loss-fn --loss-function": ["--loss bce (or dice, bce_dice, edge)"],
    "--pos-weight": ["--positive-weight W"],
    "--class-weight --weight-classes --loss-weights": ["--class-weights W W ..., one a class"],
    "--augment --augmentation --aug --transforms": [
        "--rotate, --horizontal-flip, --vertical-flip, --scale-jitter and --color-jitter"
    ],
    "--channels --n-channels --in-chans --input-channels": ["--in-channels 1 (or 3)"],
    "--base-channels --filters --width-mult --init-features --depth": [
        "--features 16 32 64 128, the channels of each level"
    ],
    "--random-seed --manual-seed": ["--seed N"],
    "--mask-threshold -t --thresh --conf": ["--threshold T"],
    "--ignore-label --ignore": ["--ignore-index VALUE"],
    "--mask-postfix --label-suffix": ["--mask-suffix TEXT"],
    "--compile-model --torch-compile": ["--compile true"],
    "--no-cache --cache-images": ["--cache false"],
    "--ema-decay --model-ema": ["--ema DECAY"],
    "--warmup-epochs --warmup-steps": ["--warmup SHARE of all steps"],
    "--viz --visualize --show --plot": ["--gallery"],
    "--no-save-images": ["--no-save"],
}


def describe_unknown(word: str, options: Collection[str]) -> str:
    """Return what to type instead of an option that a script does not have.

    Args:
        options: those that it has.
    """
    name = word.split("=")[0].replace("_", "-")
    answer = _synonym(name, options)
    if answer:
        return f"there is no {word}; use {answer}"
    longer = [option for option in options if option.startswith(name)]
    nearest = difflib.get_close_matches(name, longer or options, n=1, cutoff=0.0)[0]
    return f"there is no {word}; the nearest is {nearest}"


def _synonym(name: str, options: Collection[str]) -> str | None:
    for words, answers in SYNONYMS.items():
        if name in words.split():
            return next((text for text in answers if _option_of(text) in options), None)
    return None


def _option_of(answer: str) -> str:
    """Return the option that an answer begins with."""
    return answer.split()[0].rstrip(",")
