"""What Alembic runs: the steps, on the connection that ``schema.upgrade`` has a transaction on."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
