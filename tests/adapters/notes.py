"""A table of our own in a registry's database: what is told of transactions must not change with the schema."""

from sqlalchemy import text

from adapters.database import Database

WRITE_NOTE = text("INSERT INTO notes (id, words) VALUES (:id, '-')")
READ_NOTES = text("SELECT id FROM notes ORDER BY id")


def make_notes(database: Database) -> None:
    with database.write() as connection:
        connection.execute(text("CREATE TABLE notes (id integer PRIMARY KEY, words text)"))


def write_note(database: Database, number: int) -> None:
    with database.write() as connection:
        connection.execute(WRITE_NOTE, {"id": number})


def read_notes(database: Database) -> list[int]:
    with database.read() as connection:
        return [number for (number,) in connection.execute(READ_NOTES)]
