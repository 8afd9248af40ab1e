"""A plan in pictures."""

from pathlib import Path

import matplotlib

from embark.planning.sizing import Plan
from embark.planning.workload import DAY

matplotlib.use("Agg")  # files only: no display is needed
from matplotlib import pyplot as plt


def draw_plan(plan: Plan, folder: Path) -> list[Path]:
    """Writes pictures of the course and of the costs; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    unit, name = (DAY, "days") if plan.workload.seconds > 2 * DAY else (1.0, "seconds")
    figure, (rates, waits) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, layout="constrained")
    for view, course in plan.courses.items():
        rates.plot(course.time / unit, 100 * course.oov, label=f"{view}: OOV")
        waits.plot(course.time / unit, course.waiting, label=view)
    rates.set(ylabel="% of look-ups", title="Look-ups that are answered OOV", ylim=(0, None))
    waits.set(xlabel=name, ylabel="seconds", title="From a miss to a hit", yscale="log")
    rates.legend()
    waits.legend()
    course_path = folder / "course.png"
    figure.savefig(course_path, dpi=120)
    plt.close(figure)

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    names = list(plan.monthly)
    axes.barh(names, [plan.monthly[each] for each in names])
    for place, each in enumerate(names):
        axes.text(plan.monthly[each], place, f" {plan.machines[each]} of them", va="center")
    axes.set(xlabel="dollars a month, at the assumed prices", title="Machines and what they cost")
    axes.margins(x=0.2)
    costs_path = folder / "costs.png"
    figure.savefig(costs_path, dpi=120)
    plt.close(figure)
    return [course_path, costs_path]
