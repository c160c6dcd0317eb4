"""What a user or a plugin's author can mend: one line on stderr, exit code 2.

    RapbenchError
      PluginError    a plugin that breaks the contract, or two with one name
      SpecError      an unknown name, option or value in a spec
      GridError      a grid that cannot be read or makes no sense
      DataError      a data set that cannot be had or has a bad row
      VictimError    a model that cannot or must not be loaded
      StoreError     an output folder that cannot be used
      ClusterError   a Ray cluster that cannot be reached or cannot run the plan
      CellError      a cell that cannot be computed from what it was given

Everything else is a defect of ours and keeps its traceback.
"""


class RapbenchError(Exception):
    """Base of all errors whose one line says what was wrong and what would be right. What it quotes is shown without control signs."""

    def __str__(self) -> str:
        line = " ".join(super().__str__().split())
        return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)


class PluginError(RapbenchError):
    pass


class SpecError(RapbenchError):
    pass


class GridError(RapbenchError):
    pass


class DataError(RapbenchError):
    pass


class VictimError(RapbenchError):
    pass


class StoreError(RapbenchError):
    pass


class ClusterError(RapbenchError):
    pass


class CellError(RapbenchError):
    pass
