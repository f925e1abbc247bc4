def plan_run(config, workspace):
    return None
