"""Every row of a comparison from one command: the tries of each method, the choice among them, one table.

Left out: training (``RS``, ``verl.trainer``) and measuring (``verl.eval``), which it starts as commands of their own,
so that a crash of one try is a line of the table and not the end of it.
"""
