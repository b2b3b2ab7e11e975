"""Tools for agents, where datasette-mcp or datasette-agent is installed: each with the rights of the agent's actor."""
