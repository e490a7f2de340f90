import { resolve } from 'node:path'
import t from 'tap'
import { importersOf, importViolations, WRAPPED } from '../support/import-rules.ts'

const repository = resolve(import.meta.dirname, '../..')

t.test('the import table of docs/architecture.md holds', async (t) => {
  t.strictSame(importViolations(repository), [])
})

t.test(
  'aedes, mqtt, better-sqlite3, @peculiar/x509, koffi, @prometheus-io/client, ws and jose are each known to exactly one file',
  async (t) => {
    for (const name of WRAPPED) t.equal(importersOf(repository, name).length, 1, name)
  },
)

t.test('a violation is found, wherever it is planted', async (t) => {
  const planted: Record<string, { files: Record<string, string>; says: RegExp }> = {
    'shared knows a service': {
      files: { 'shared/a.ts': "import { x } from '../broker/x.ts'" },
      says: /shared\/a\.ts imports broker\/x\.ts/,
    },
    'a service knows another': {
      files: { 'operator/commands/a.ts': "import type { X } from '../../enrollment/x.ts'" },
      says: /operator may import operator and shared only/,
    },
    'a service loads another later': {
      files: { 'broker/a.ts': "const x = await import('../enrollment/x.ts')" },
      says: /broker\/a\.ts imports enrollment\/x\.ts/,
    },
    'a service passes another on, over several lines': {
      files: { 'device-sim/a.ts': "export {\n  one,\n  two,\n} from '../broker/x.ts'" },
      says: /device-sim\/a\.ts imports broker\/x\.ts/,
    },
    'a use case knows HTTP': {
      files: { 'enrollment/enroll.ts': "import { problem } from './http/problem.ts'" },
      says: /a use case may not/,
    },
    'a use case knows Fastify': {
      files: { 'enrollment/enroll.ts': "import fastify from 'fastify'" },
      says: /imports fastify/,
    },
    'a use case knows SQL': {
      files: { 'enrollment/enroll.ts': "import { openSqliteRegistry } from './registry/sqlite.ts'" },
      says: /enrollment\/enroll\.ts imports enrollment\/registry\/sqlite\.ts: a use case may not/,
    },
    'the CA knows a use case': {
      files: { 'enrollment/ca/issue.ts': "import { enroll } from '../enroll.ts'" },
      says: /enrollment\/ca may not/,
    },
    'two files know aedes': {
      files: { 'broker/a.ts': "import { Aedes } from 'aedes'", 'broker/b.ts': "import 'aedes/lib/x.js'" },
      says: /aedes is imported by broker\/a\.ts and broker\/b\.ts/,
    },
    'the environment is read in the middle': {
      files: { 'broker/door/gate.ts': 'const limit = Number(process.env.LIMIT)' },
      says: /reads process\.env/,
    },
    'the environment is taken apart': {
      files: { 'shared/gate.ts': 'const { env } = process' },
      says: /reads process\.env/,
    },
  }
  for (const [title, { files, says }] of Object.entries(planted)) {
    t.match(importViolations(t.testdir(tree(files))).join('\n'), says, title)
  }
})

t.test('what the table allows is not a violation', async (t) => {
  const root = t.testdir(
    tree({
      'enrollment/main.ts': "import { listen } from './http/server.ts'\nconst x = process.env.X",
      'enrollment/http/est.ts':
        "import { enroll } from '../enroll.ts'\nimport { createServer } from 'node:https'",
      'enrollment/enroll.ts': "import { issue } from './ca/issue.ts'\nimport { a } from '#shared/errors'",
      'test/broker/a.test.ts': "import { Aedes } from 'aedes'\nimport x from '../../enrollment/x.ts'",
      'broker/mqtt/aedes-hooks.ts': "import { Aedes } from 'aedes'",
    }),
  )
  t.strictSame(importViolations(root), [])
})

/** `a/b.ts` as the nested directories that tap's fixtures are made of. */
function tree(files: Record<string, string>): Directory {
  const root: Directory = {}
  for (const [path, text] of Object.entries(files)) {
    const parts = path.split('/')
    let directory = root
    for (const part of parts.slice(0, -1)) {
      directory[part] ??= {}
      directory = directory[part] as Directory // no path of these fixtures is a file and a directory
    }
    directory[parts.at(-1) ?? ''] = text
  }
  return root
}
interface Directory {
  [name: string]: Directory | string
}
