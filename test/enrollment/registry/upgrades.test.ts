/** What a registry of an earlier version becomes. */
import { join } from 'node:path'
import t from 'tap'
import { openSqlite } from '#shared/sqlite'
import { MIGRATIONS } from '../../../enrollment/registry/schema.ts'
import { LISTED_SERIALS } from '../../../enrollment/registry/schema-listed-serials.ts'

t.test('a serial that lost the zero it begins with has it again', async (t) => {
  const path = join(t.testdir({}), 'registry.db')
  const before = MIGRATIONS.slice(0, MIGRATIONS.indexOf(LISTED_SERIALS))
  const open = (migrations: readonly string[]) => openSqlite(path, { busyTimeoutMs: 100, migrations })
  const old = open(before)
  old.pragma('foreign_keys = OFF')
  const insert = old.prepare('INSERT INTO manufactured (token, certificate_serial, device) VALUES (1, ?, ?)')
  insert.run('a'.repeat(39), 'cut')
  insert.run('b'.repeat(40), 'whole')
  old.close()
  const db = open(MIGRATIONS)
  t.strictSame(db.prepare('SELECT certificate_serial FROM manufactured ORDER BY device').pluck().all(), [
    `0${'a'.repeat(39)}`,
    'b'.repeat(40),
  ])
  db.close()
})
