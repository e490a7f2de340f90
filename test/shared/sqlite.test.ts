import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { isLocked, lockDirectory, openSqlite, openSqliteForReading, sqliteCode } from '#shared/sqlite'

const options = { busyTimeoutMs: 1000, migrations: ['CREATE TABLE a (x INTEGER)'] }

t.test('a database is FULL and WAL on every open, not only on the first', async (t) => {
  const path = join(t.testdir({}), 'a.db')
  for (const open of ['new', 'again', 'once more']) {
    const db = openSqlite(path, options)
    t.equal(db.pragma('journal_mode', { simple: true }), 'wal', open)
    t.equal(db.pragma('synchronous', { simple: true }), 2, open)
    t.equal(db.pragma('foreign_keys', { simple: true }), 1, open)
    db.close()
  }
})

t.test('what a commit survives is set on every open, whatever the one before had', async (t) => {
  const path = join(t.testdir({}), 'a.db')
  for (const [durability, synchronous] of [
    ['kill', 1],
    ['full', 2],
    ['kill', 1],
    ['kill', 1],
  ] as const) {
    const db = openSqlite(path, { ...options, durability })
    t.equal(db.pragma('synchronous', { simple: true }), synchronous)
    t.equal(db.pragma('journal_mode', { simple: true }), 'wal')
    db.close()
  }
})

t.test('only its owner may read a database', async (t) => {
  const path = join(t.testdir({}), 'a.db')
  const db = openSqlite(path, options)
  db.exec('INSERT INTO a VALUES (1)')
  for (const file of [path, `${path}-wal`, `${path}-shm`]) t.equal(statSync(file).mode & 0o777, 0o600, file)
  db.close()
})

t.test('a database in memory works too', async (t) => {
  const db = openSqlite(':memory:', options)
  t.equal(db.pragma('user_version', { simple: true }), 1)
  t.notOk(existsSync(':memory:'))
  db.close()
})

t.test('migrations run once each, in order, and all or none', async (t) => {
  const path = join(t.testdir({}), 'a.db')
  openSqlite(path, options).close()
  const second = { ...options, migrations: [...options.migrations, 'INSERT INTO a VALUES (7)'] }
  openSqlite(path, second).close()
  const db = openSqlite(path, second)
  t.strictSame(db.prepare('SELECT x FROM a').all(), [{ x: 7 }])
  const broken = { ...second, migrations: [...second.migrations, 'INSERT INTO a VALUES (8); nonsense'] }
  t.throws(() => openSqlite(path, broken), { code: 'directory_unusable' })
  t.strictSame(db.prepare('SELECT x FROM a').all(), [{ x: 7 }])
  t.equal(db.pragma('user_version', { simple: true }), 2)
  db.close()
})

t.test('a database of a newer version is refused', async (t) => {
  const path = join(t.testdir({}), 'a.db')
  openSqlite(path, { ...options, migrations: ['SELECT 1', 'SELECT 1'] }).close()
  t.throws(() => openSqlite(path, options), { code: 'directory_unusable', message: /newer version/ })
})

t.test('what is no database, is damaged, or cannot be opened is refused in one sentence', async (t) => {
  const directory = t.testdir({
    'text.db': 'this is a letter, not a database, and long enough to be told from one',
  })
  const refused = { code: 'directory_unusable', message: /^Cannot open the database/ }
  t.throws(() => openSqlite(join(directory, 'text.db'), options), refused)
  t.throws(() => openSqlite(directory, options), refused)
  t.throws(() => openSqlite(join(directory, 'none', 'a.db'), options), refused)
  const path = join(directory, 'damaged.db')
  const db = openSqlite(path, options)
  db.exec(
    'WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 5000) INSERT INTO a SELECT x FROM n',
  )
  db.close()
  truncateSync(path, 8192)
  t.throws(() => openSqlite(path, options), refused, 'the second half is missing')
})

t.test('a reader sees a state of its own, writes nothing, and makes no file', async (t) => {
  const path = join(t.testdir({}), 'a.db')
  t.throws(() => openSqliteForReading(path, 0))
  const db = openSqlite(path, options)
  const reader = openSqliteForReading(path, 0)
  const count = () => reader.prepare('SELECT COUNT(*) AS n FROM a').get()
  reader.exec('BEGIN')
  t.strictSame(count(), { n: 0 })
  db.exec('INSERT INTO a VALUES (1)')
  t.strictSame(count(), { n: 0 })
  reader.exec('COMMIT')
  t.strictSame(count(), { n: 1 })
  t.throws(() => reader.exec('INSERT INTO a VALUES (2)'), /readonly/)
  reader.close()
  db.close()
})

t.test('errors of SQLite have a code, others have none', async (t) => {
  const db = openSqlite(':memory:', { ...options, migrations: ['CREATE TABLE a (x INTEGER UNIQUE)'] })
  db.exec('INSERT INTO a VALUES (1)')
  try {
    db.exec('INSERT INTO a VALUES (1)')
    t.fail('the value is taken')
  } catch (error) {
    t.equal(sqliteCode(error), 'SQLITE_CONSTRAINT_UNIQUE')
  }
  t.equal(sqliteCode(new Error('SQLITE_BUSY')), null)
  db.close()
})

t.test('a directory has one holder', async (t) => {
  const path = join(t.testdir({}), 'lock.db')
  const lock = lockDirectory(path)
  t.throws(() => lockDirectory(path), { code: 'directory_in_use' })
  lock.release()
  lockDirectory(path).release()
})

t.test('the lock of a process that was killed is free', async (t) => {
  const path = join(t.testdir({}), 'lock.db')
  const script = join(t.testdirName, 'holder.mjs')
  const module = JSON.stringify(new URL('../../shared/sqlite.ts', import.meta.url).href)
  writeFileSync(
    script,
    `import { lockDirectory } from ${module}; lockDirectory(${JSON.stringify(path)}); console.log('held'); setInterval(() => {}, 1000)`,
  )
  const holder = spawn(process.execPath, [script], { stdio: ['ignore', 'pipe', 'inherit'], env: {} })
  await once(holder.stdout, 'data')
  t.throws(() => lockDirectory(path), { code: 'directory_in_use' })
  holder.kill('SIGKILL')
  await once(holder, 'exit')
  lockDirectory(path).release()
})

t.test('whether a lock is held can be seen without taking it', async (t) => {
  const path = join(t.testdir({}), 'lock.db')
  t.equal(isLocked(path), false, 'nobody ever took it')
  const lock = lockDirectory(path)
  t.equal(isLocked(path), true)
  t.equal(isLocked(path), true, 'and it stays held')
  lock.release()
  t.equal(isLocked(path), false)
  lockDirectory(path).release()
})
