def checks(long):
    return []
