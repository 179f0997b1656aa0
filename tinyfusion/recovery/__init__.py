"""What a recovery minimises, and which blocks of student and teacher it compares."""
