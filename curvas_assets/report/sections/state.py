"""What was made of the study when the report was written, and what was out of date."""

from curvas_assets.report.blocks import Absent, Block, Text
from curvas_assets.report.facts import Facts


def write(facts: Facts) -> list[Block]:
    """What the ensembles average, and the state of the lineage."""
    w, state, averaged = facts.words, facts.inputs.state, facts.inputs.averaged
    blocks: list[Block] = []
    if averaged is not None and len(averaged):
        columns = facts.headings("predictor", "members", "patients", "models")
        blocks += [Text(w("averaged_text")), facts.table(averaged, columns, folded=len(averaged) > 15)]
    if state is None:
        return [*blocks, Absent(w("no_state"))]
    if not state["stale"].any():
        blocks.append(Text(w("fresh_text")))
    shown = state.assign(why=[w.reason(str(why)) for why in state["why"]])
    return [*blocks, Text(w("state_text")), facts.table(shown, facts.headings(*shown.columns))]
