"""OpenTelemetry: what the plugin measures, through the providers that whoever runs Datasette has installed.

:mod:`.registry` names everything that is emitted, :mod:`.metrics` and :mod:`.spans` emit it. Without a provider nothing
is recorded, and nothing is counted that is not counted anyway.
"""
