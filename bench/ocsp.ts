import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { MusterError } from '#shared/errors'
import { freePort, writeKeys } from './cfssl.ts'
import { type Bench, type BenchContext, compare, perCpuSecond, type Side } from './harness.ts'
import { spent } from './issue.ts'
import { fresh, keepAlive, type Load, type Target } from './load.ts'
import { newDirectory, type Plane, startPlane } from './plane.ts'
import { need, programBeside, ready, type Server, startServer, versionOf } from './processes.ts'
import { newCsr, post } from './requests.ts'

const DEVICES = 50
const KEEP_ALIVE = 60_000
const FRESH = 5_000
const CONNECTIONS = 16

export const ocsp: Bench = {
  name: 'ocsp',
  says: 'OCSP answers per server-CPU-second, beside a constant reply of the same listener and openssl ocsp',
  async run(context) {
    need('openssl')
    const plane = await startPlane(context)
    const serials = await enrolled(plane)
    const requests = requestsFor(context, { plane, serials })
    const openssl = await startOpenssl(context, { plane, serials, first: requests[0] ?? Buffer.alloc(0) })
    const how = { context, unit: 'answers/CPU-s', better: 'higher', figure: perCpuSecond } as const
    const server = { server: plane.server, target: { port: plane.ports.http, ca: null } }
    const version = `Node ${process.versions.node}, OpenSSL ${process.versions.openssl}`
    const ours = { name: 'muster', command: plane.command, version, at: server, requests, context }
    const empty = { ...ours, ...(await startEmpty(context)), isEmpty: true }

    context.say('keep-alive connections')
    const open = await compare(
      {
        ours: side(keepAlive, { ...ours, count: KEEP_ALIVE }),
        peers: [side(keepAlive, { ...empty, count: KEEP_ALIVE })],
      },
      how,
    )
    context.say('a fresh connection for each')
    const peer = { ...openssl, version: versionOf('openssl', ['version']), requests, context, count: FRESH }
    const each = await compare(
      {
        ours: side(fresh, { ...ours, count: FRESH }),
        peers: [side(fresh, { ...peer, name: 'openssl ocsp' })],
      },
      how,
    )
    return { ...open, also: { fresh: each } }
  },
}

interface Asked {
  readonly name: string
  readonly command: string
  readonly version: string
  readonly at: { readonly server: Server; readonly target: Target }
  readonly requests: readonly Buffer[]
  /** Answered with two octets, whatever is asked. */
  readonly isEmpty?: boolean
  readonly context: BenchContext
  readonly count: number
}

function side(way: typeof keepAlive, asked: Asked): Side {
  const { name, command, version, at, isEmpty = false } = asked
  const messages = asked.requests.map((der) => message(der))
  const count = Math.ceil(asked.count * asked.context.effort)
  const requests = Array.from(
    { length: count },
    (_, index) => messages[index % messages.length] ?? Buffer.alloc(0),
  )
  const check: Load['check'] = ({ status, body }) => {
    if (status === 200 && isEmpty !== isAnswer(body)) return
    throw new Error(`a request was answered with ${status} and ${body.length} octets`)
  }
  const load = { requests, connections: CONNECTIONS, check }
  return {
    name,
    command,
    version,
    measure: () => spent(at.server, { count, work: () => way(at.target, load) }),
  }
}

/** OCSPResponseStatus successful (RFC 6960 section 4.2.1): the first ENUMERATED, which a failure holds alone. */
function isAnswer(body: string): boolean {
  return body.length > 100 && body.slice(4, 7) === '\x0a\x01\x00'
}

function message(der: Buffer): Buffer {
  const [head = ''] = post('/ocsp', { type: 'application/ocsp-request', body: '' })
    .toString()
    .split('Content-Length')
  return Buffer.concat([Buffer.from(`${head}Content-Length: ${der.length}\r\n\r\n`), der])
}

/** Serials of devices that have enrolled. */
async function enrolled(plane: Plane): Promise<string[]> {
  const { token } = await plane.admin.createToken({ batch: 'bench', uses: DEVICES })
  const serials: string[] = []
  const requests = Array.from({ length: DEVICES }, (_, index) =>
    post('/v1/enroll', {
      type: 'application/json',
      body: JSON.stringify({ token, csr: newCsr(`ocsp-${index}`) }),
    }),
  )
  const check: Load['check'] = ({ status, body }) => {
    if (status !== 200) throw new Error(`an enrollment was answered with ${status}: ${body.slice(0, 300)}`)
    serials.push((JSON.parse(body) as { serial: string }).serial) // the API says so
  }
  await keepAlive(plane.target, { requests, connections: 4, check })
  return serials
}

/** Requests as OpenSSL writes them, without a nonce, so that an answer may have been signed before. */
function requestsFor(
  context: BenchContext,
  { plane, serials }: { plane: Plane; serials: readonly string[] },
): Buffer[] {
  const file = join(newDirectory(context), 'request.der')
  const issuer = join(plane.layout.ca, 'device-ca.crt')
  return serials.map((serial) => {
    execFileSync(need('openssl'), [
      'ocsp',
      '-issuer',
      issuer,
      '-serial',
      `0x${serial}`,
      '-no_nonce',
      '-reqout',
      file,
    ])
    return readFileSync(file)
  })
}

/** The same listener with nothing to do: what is left is the HTTP that every answer costs. */
async function startEmpty(context: BenchContext) {
  const port = await freePort()
  const program = programBeside(import.meta.url, 'empty-reply')
  const command = [process.execPath, program, String(port)]
  const server = startServer(command, { context, cwd: newDirectory(context), ipc: true })
  await ready(server, 'the empty reply')
  return {
    name: 'the same listener, a constant reply',
    command: 'node bench/empty-reply.ts PORT',
    at: { server, target: { port, ca: null } },
  }
}

async function startOpenssl(
  context: BenchContext,
  { plane, serials, first }: { plane: Plane; serials: readonly string[]; first: Buffer },
) {
  const directory = newDirectory(context)
  writeKeys(directory, plane.layout)
  const lines = serials.map((serial) => `V\t360101000000Z\t\t${serial.toUpperCase()}\tunknown\t/CN=${serial}`)
  writeFileSync(join(directory, 'index.txt'), `${lines.join('\n')}\n`)
  const port = await freePort()
  const args = [
    'ocsp',
    '-index',
    'index.txt',
    '-port',
    String(port),
    '-rsigner',
    'ca.crt',
    '-rkey',
    'ca.key',
    '-CA',
    'ca.crt',
    '-nmin',
    '60',
  ]
  const server = startServer([need('openssl'), ...args], { context, cwd: directory })
  await answering(port, first)
  return {
    at: { server, target: { port, ca: null } },
    command: `openssl ${args.join(' ').replace(String(port), 'PORT')}`,
  }
}

const READY_DEADLINE_MS = 10_000

/**
 * Resolves when a request is answered. A connection that says nothing would be the last one that `openssl ocsp` takes:
 * it reads on from it for ever, also when it is closed.
 * @throws MusterError unavailable
 */
async function answering(port: number, der: Buffer): Promise<void> {
  const load: Load = { requests: [message(der)], connections: 1, check: () => {} }
  for (
    const deadline = performance.now() + READY_DEADLINE_MS;
    performance.now() < deadline;
    await setTimeout(50)
  ) {
    try {
      await fresh({ port, ca: null }, load)
      return
    } catch {
      // not yet
    }
  }
  throw new MusterError('unavailable', `Cannot run the bench: openssl ocsp did not answer on port ${port}`)
}
