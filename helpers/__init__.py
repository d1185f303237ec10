"""The small library of the Uncontained notebooks: the privileged steps, the pictures, the checks."""
