import { type Cfssl, type Database, startCfssl } from './cfssl.ts'
import { type Bench, type BenchContext, compare, type Measured, perCpuSecond, type Side } from './harness.ts'
import { fresh, keepAlive, type Load } from './load.ts'
import { type Plane, startPlane } from './plane.ts'
import { need, programBeside, runPinned, type Server, versionOf } from './processes.ts'
import { newCsr, post } from './requests.ts'

/** Enrollments in one run: one to two seconds of the server's processor, which counts in hundredths. */
const KEEP_ALIVE = { ours: 4_000, rollback: 1_600, wal: 3_000, none: 4_000 } as const satisfies Counts
const FRESH = { ours: 1_500, rollback: 800, none: 1_500 } as const satisfies Partial<Counts>
const LIMIT = 12_000
/**
 * Turns whose figures are dropped, for all sides alike: V8 goes on compiling for some 15 000 enrollments, and a service
 * that has run for an hour is what is to be measured, not its first ten seconds. (The fresh connections come after it.)
 */
const REHEARSALS = 4
/** Kept open at a time; with fresh connections, as many handshakes are under way. */
const CONNECTIONS = 32
const TOKEN_USES = 10_000_000

export const issue: Bench = {
  name: 'issue',
  says: 'durable enrollments per server-CPU-second, beside cfssl and the bare cryptography',
  async run(context) {
    need('cfssl')
    const plane = await startPlane(context)
    const start = (database: Database) => startCfssl(context, { of: plane.layout, database })
    const stored = await start('rollback')
    const inWal = await start('wal')
    const bare = await start('none')
    const token = (await plane.admin.createToken({ batch: 'bench', uses: TOKEN_USES })).token
    const at = { context, plane, token }
    const how = { context, unit: 'enrollments/CPU-s', better: 'higher', figure: perCpuSecond } as const

    context.say('keep-alive connections')
    const open = await compare(
      {
        ours: oursWith(keepAlive, { ...at, count: KEEP_ALIVE.ours }),
        peers: [
          cfsslWith(keepAlive, { context, cfssl: stored, count: KEEP_ALIVE.rollback }),
          cfsslWith(keepAlive, { context, cfssl: inWal, count: KEEP_ALIVE.wal }),
          cfsslWith(keepAlive, { context, cfssl: bare, count: KEEP_ALIVE.none }),
          limitSide(context),
        ],
      },
      { ...how, rehearsals: REHEARSALS },
    )
    context.say('a fresh TLS connection for each')
    const each = await compare(
      {
        ours: oursWith(fresh, { ...at, count: FRESH.ours }),
        peers: [
          cfsslWith(fresh, { context, cfssl: bare, count: FRESH.none }),
          cfsslWith(fresh, { context, cfssl: stored, count: FRESH.rollback }),
        ],
      },
      how,
    )
    return { ...open, also: { fresh: each } }
  },
}

type Way = typeof keepAlive
type Counts = Record<'ours' | Database, number>

const CFSSL_NAMES = {
  rollback: 'cfssl with SQLite',
  wal: 'cfssl with SQLite in WAL mode',
  none: 'cfssl without database',
} as const satisfies Record<Database, string>

/** With the rollback journal more of them would only be told that the database is locked. */
const CFSSL_CONNECTIONS = {
  rollback: 4,
  wal: CONNECTIONS,
  none: CONNECTIONS,
} as const satisfies Record<Database, number>

interface Ours {
  readonly context: BenchContext
  readonly plane: Plane
  readonly token: string
  readonly count: number
}

let made = 0

/** `POST /v1/enroll`: token, registry, audit log, change log, fsync and lint are all on. */
export function oursWith(way: Way, { context, plane, token, count }: Ours): Side {
  return {
    name: 'muster',
    command: plane.command,
    version: `Node ${process.versions.node}, OpenSSL ${process.versions.openssl}`,
    measure: () => {
      const requests = Array.from({ length: Math.ceil(count * context.effort) }, () =>
        post('/v1/enroll', {
          type: 'application/json',
          body: JSON.stringify({ token, csr: newCsr(`bench-${++made}`) }),
        }),
      )
      const load: Load = { requests, connections: CONNECTIONS, check: expect('"serial"') }
      return spent(plane.server, { count: requests.length, work: () => way(plane.target, load) })
    },
  }
}

function cfsslWith(
  way: Way,
  { context, cfssl, count }: { context: BenchContext; cfssl: Cfssl; count: number },
): Side {
  return {
    name: CFSSL_NAMES[cfssl.database],
    command: cfssl.command,
    version: `cfssl ${versionOf('cfssl', ['version']).replace('Version: ', '')}`,
    measure: async () => {
      const requests = Array.from({ length: Math.ceil(count * context.effort) }, () =>
        post('/api/v1/cfssl/sign', {
          type: 'application/json',
          body: JSON.stringify({ certificate_request: newCsr(`bench-${++made}`) }),
        }),
      )
      const before = cfssl.recorded()
      const load: Load = {
        requests,
        connections: CFSSL_CONNECTIONS[cfssl.database],
        check: expect('"success":true'),
      }
      const measured = await spent(cfssl.server, {
        count: requests.length,
        work: () => way(cfssl.target, load),
      })
      const recorded = cfssl.recorded() - before
      if (cfssl.database !== 'none' && recorded !== requests.length)
        throw new Error(`cfssl recorded ${recorded} of ${requests.length}`)
      return measured
    },
  }
}

function limitSide(context: BenchContext): Side {
  const program = programBeside(import.meta.url, 'limit')
  return {
    name: 'verify and sign alone',
    command: `node bench/limit.ts ${LIMIT}`,
    version: `Node ${process.versions.node}, OpenSSL ${process.versions.openssl}`,
    measure: async () => {
      const said = await runPinned(
        [process.execPath, program, String(Math.ceil(LIMIT * context.effort))],
        process.cwd(),
      )
      return JSON.parse(said) as Measured // our own program wrote it
    },
  }
}

/** A reply that is no certificate ends the bench: a refusal is quick, and would be counted as speed. */
function expect(sign: string): Load['check'] {
  return ({ status, body }) => {
    if (status === 200 && body.includes(sign)) return
    throw new Error(`a request was answered with ${status}: ${body.slice(0, 300)}`)
  }
}

export async function spent(
  server: Server,
  { count, work }: { count: number; work: () => Promise<void> },
): Promise<Measured> {
  const before = server.cpuS()
  await work()
  return { count, cpuS: server.cpuS() - before }
}
