"""`make ui`: the Dagster UI on what `make demo` or `make study` left, until Ctrl-C, a closed terminal or an end by `kill`."""

import argparse
import sys
from pathlib import Path

from curvas_assets.errors import CurvasError
from curvas_assets.local.deployment import DEMO_STUDY, LocalDeployment, require_port, state_of, typed_as
from curvas_assets.local.processes import end_cleanly_when_told, owner
from curvas_assets.orchestration.environment import deployment as settings_here
from curvas_assets.orchestration.environment import variable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", default=DEMO_STUDY, help="name or path of the study")
    parser.add_argument("--state", type=Path, help="folder of everything that it keeps")
    parser.add_argument("--port", type=int, default=3000)
    arguments = parser.parse_args()
    try:
        state = arguments.state or state_of(arguments.study)
        serve(LocalDeployment(state, study=arguments.study), arguments.port)
    except CurvasError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("stopped", flush=True)


def serve(deployment: LocalDeployment, port: int) -> None:
    """Serve the UI until the process is told to end.

    Raises:
        InUseError: the state is in use.
        StorageError: the port is in use, or the store does not start.
    """
    url = f"http://127.0.0.1:{port}"
    end_cleanly_when_told(deployment.state)
    with owner(deployment.state, typed_as("ui", deployment.state, deployment.study), url):
        require_port(port)
        with deployment.s3:
            variables = deployment.environment()
            if (slots := settings_here().gpu_slots) is not None:
                deployment.set_gpu_slots(slots)
            with (
                deployment.reports(variables, port) as report,
                deployment.dagster({**variables, variable("report_url"): report}, port) as process,
            ):
                print(
                    f"Dagster: {url}, study {variables[variable('study')]}   (Ctrl-C ends it; the state stays in {deployment.state})\n"
                    f"Report:  {report}",
                    flush=True,
                )
                process.wait()
                print(f"Dagster ended while starting: see {deployment.logs / 'dagster.log'}", file=sys.stderr)


if __name__ == "__main__":
    main()
