"""The parts of the report's web page: tables, figures, interactive surfaces, and the template."""
