import { X509Certificate } from 'node:crypto'
import { chmodSync, existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import t from 'tap'
import { layout, ports } from '#shared/layout'
import { freePortBase, interrupt, scratch, startMuster, up } from '../support/muster.ts'
import { adminOf, muster } from '../support/plane.ts'
import { visit } from '../support/tickets.ts'

/** Longest for something that happens by itself once its cause is there, ms. */
const DEADLINE_MS = 20_000

/** Process ids of the children, by the name of the program that each runs (Linux). */
function childrenOf(pid: number | undefined): Record<string, number> {
  const pids = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').map(Number)
  return Object.fromEntries(
    pids.map((child) => {
      const [, ...words] = readFileSync(`/proc/${child}/cmdline`, 'utf8').split('\0')
      return [words.filter((word) => !word.startsWith('--'))[1] ?? '', child] // after Node, its options and the program
    }),
  )
}

function isAlive(pid: number): boolean {
  return existsSync(`/proc/${pid}/cmdline`) && readFileSync(`/proc/${pid}/cmdline`).length > 0
}

async function untilGone(pids: number[]): Promise<void> {
  for (let waitedMs = 0; pids.some(isAlive); waitedMs += 20) {
    if (waitedMs > DEADLINE_MS) throw new Error(`still there: ${pids.filter(isAlive)}`)
    await setTimeout(20)
  }
}

const linux = { skip: process.platform !== 'linux' }
const data = join(scratch(t), 'data')
const portBase = await freePortBase()

t.test('the first start makes a plane, says where it is, and stops cleanly', async (t) => {
  const plane = await up(t, { data, portBase })
  const files = layout(data)
  const root = new X509Certificate(readFileSync(files.rootCertificate))
  t.match(
    plane.stderr(),
    new RegExp(`SHA-256 ${root.fingerprint256.slice(0, 5)}:…:${root.fingerprint256.slice(-2)}`),
  )
  t.match(plane.stderr(), `mqtts://localhost:${portBase + 883}`)
  t.match(plane.stderr(), `https://localhost:${portBase + 443}/.well-known/est`)
  t.notMatch(plane.stderr(), 'There are', 'a first start finds nothing')
  const stranger = await visit('nobody', { port: portBase + 883, ca: readFileSync(files.rootCertificate) })
  t.equal(stranger.tickets.length, 1, 'its broker makes one ticket with a handshake')
  t.match(plane.ready, {
    schemaVersion: 1,
    pid: plane.child.pid,
    broker: `mqtts://localhost:${portBase + 883}`,
    enrollment: `https://localhost:${portBase + 443}`,
    admin: `https://localhost:${portBase + 444}`,
    http: `http://localhost:${portBase + 80}`,
    caFile: files.rootCertificate,
    operatorProfile: files.operatorProfile,
  })
  for (const path of [files.ready, join(data, 'logs/broker.log'), join(files.broker, 'broker.key')]) {
    t.equal(statSync(path).mode & 0o777, 0o600, path)
  }
  t.equal(statSync(data).mode & 0o777, 0o700)
  t.notOk(existsSync(join(files.broker, 'invitation.json')), 'the invitation is gone')
  t.match(await adminOf(t, plane as never).listBrokers(), [{ id: 'broker', state: 'up' }])

  const ended = await interrupt(plane)
  t.equal(ended.status, 0, ended.stderr)
  t.equal(ended.stdout, '', 'words go to stderr')
  t.notOk(existsSync(files.ready), 'ready.json is gone')
})

t.test('the second start runs no demo and says what is there', async (t) => {
  const given = ['--durability', 'kill', '--limit', 'queueMessages=7', '--limit', 'publishBurst=9']
  const plane = await up(t, { data, portBase, args: [...given, '--metrics'] })
  if (process.platform === 'linux') {
    const { broker = 0 } = childrenOf(plane.child.pid)
    t.match(readFileSync(`/proc/${broker}/cmdline`, 'utf8'), given.join('\0'), 'the broker is told')
  }
  t.match(plane.stderr(), /There are 0 active devices; .*1 broker\./)
  t.match(plane.stderr(), /Metrics +http:\/\/127\.0\.0\.1:\d+\/metrics/, 'where it was asked for')
  t.notMatch(plane.stderr(), 'Demo fleet', 'the demo is for the first start')
  t.equal((await interrupt(plane)).status, 0)
})

t.test('what enrollment keeps, and where, can be said at the start', async (t) => {
  const journal = join(scratch(t), 'journal')
  const kept = [
    '--keep-expired',
    '30d',
    '--keep-changes',
    '2d',
    '--keep-audit',
    '90d',
    '--keep-journal',
    '14d',
  ]
  const plane = await up(t, {
    data: join(scratch(t), 'data'),
    portBase,
    args: ['--no-demo', '--journal', journal, ...kept],
  })
  t.equal((await interrupt(plane)).status, 0)
  t.match(readdirSync(journal), [/^\d{12}\.log$/], 'the journal lies there')
  t.notOk(existsSync(layout(plane.data).journal))
  const { stdout } = await muster(['up', '--help'])
  for (const option of [
    '--durability',
    '--limit',
    '--journal',
    '--keep-expired',
    '--keep-changes',
    '--keep-audit',
    '--keep-journal',
  ]) {
    t.match(stdout, option)
  }
})

t.test('with --json the document of ready.json is the only thing on stdout', async (t) => {
  const plane = await up(t, { data, portBase, args: ['--json'] })
  const { stdout } = await interrupt(plane)
  t.strictSame(JSON.parse(stdout), plane.ready)
})

t.test('a directory in use, and ports in use, are each one sentence', async (t) => {
  const plane = await up(t, { data, portBase })
  const second = await muster(['up', '--data', data, '--port-base', String(await freePortBase())])
  t.equal(second.status, 5)
  t.match(
    second.stderr,
    /^✘ Cannot use the directory of .*: another process holds it\n {2}Stop the other one/,
  )
  const elsewhere = await muster(['up', '--data', join(scratch(t), 'data'), '--port-base', String(portBase)])
  t.equal(elsewhere.status, 5)
  t.match(
    elsewhere.stderr,
    new RegExp(`^✘ Cannot use port ${portBase + 883} for the broker.*\\n.*--port-base`),
  )
  t.equal((await interrupt(plane)).status, 0)
})

t.test('each of the four ports is looked at before anything is started', async (t) => {
  for (const port of Object.values(ports(portBase))) {
    const other = createServer().listen(port, '127.0.0.1')
    const directory = join(scratch(t), 'data')
    const refused = await muster(['up', '--data', directory, '--port-base', String(portBase)])
    other.close()
    t.equal(refused.status, 5)
    t.match(refused.stderr, `Cannot use port ${port} for`)
    t.notOk(existsSync(layout(directory).ca), 'nothing was made')
  }
})

t.test('a directory that cannot be used, or options that make no sense, are each one sentence', async (t) => {
  const file = join(scratch(t), 'file')
  writeFileSync(file, '')
  const wrong: [string[], number, RegExp][] = [
    [['--data', file], 8, /^✘ Cannot use ".*file": a file has that name; choose another with --data\n$/],
    [['--data', join(file, 'below')], 8, /^✘ Cannot use ".*below": .*; choose another with --data\n$/],
    [['--port-base', '65000'], 2, /^✘ Cannot take --port-base 65000/],
    [['--port-base', 'eight'], 2, /^✘ Cannot take --port-base "eight"/],
    [['--devices', '0'], 2, /^✘ Cannot take --devices "0"/],
    [['--keep-audit', 'long'], 2, /^✘ Cannot read the duration "long"/],
    [['--listen', '192.0.2.1'], 2, /^✘ Cannot listen on 192\.0\.2\.1/],
  ]
  for (const [args, status, says] of wrong) {
    const { status: ended, stderr } = await muster(['up', '--data', join(scratch(t), 'data'), ...args])
    t.equal(ended, status, args.join(' '))
    t.match(stderr, says, args.join(' '))
  }
})

t.test('a key that others can read stops the start, in the words of the service', async (t) => {
  const key = join(data, 'ca/device-ca.key')
  chmodSync(key, 0o644)
  const refused = await muster(['up', '--data', data, '--port-base', String(portBase)])
  chmodSync(key, 0o600)
  t.equal(refused.status, 8)
  t.match(
    refused.stderr,
    /^✘ Cannot use ".*device-ca\.key": its mode is 0644; fix: chmod 600 .*device-ca\.key\n$/,
  )
})

t.test('a service that is killed comes back, and that is said', linux, async (t) => {
  const plane = await up(t, { data, portBase })
  for (const name of ['broker', 'enrollment']) {
    process.kill(childrenOf(plane.child.pid)[name] ?? 0, 'SIGKILL')
    await plane.says(new RegExp(`The ${name} was ended by SIGKILL; starting it again`))
    await plane.says(new RegExp(`The ${name} is back`))
  }
  t.match(await adminOf(t, plane as never).status(), { devices: { active: 0 } })
  t.equal((await interrupt(plane)).status, 0)
})

t.test('a supervisor that is killed leaves nothing running', linux, async (t) => {
  const plane = await up(t, { data, portBase })
  const children = Object.values(childrenOf(plane.child.pid))
  t.equal(children.length, 2)
  plane.child.kill('SIGKILL')
  await untilGone(children)
  t.ok(existsSync(layout(data).ready), 'the file of the dead plane is still there')
  const misled = await muster(['sim', 'run', 'steady', '--data', data])
  t.equal(misled.status, 7)
  t.match(misled.stderr, /Cannot find a running plane: the one that wrote ".*ready\.json" has ended/)
  await interrupt(await up(t, { data, portBase }))
})

t.test('one Ctrl-C that arrives twice, as it does under npm, is one', async (t) => {
  const plane = await up(t, { data, portBase })
  plane.child.kill('SIGINT')
  await plane.says(/Stopping/)
  const ended = await interrupt(plane)
  t.equal(ended.status, 0, ended.stderr)
  for (const name of ['broker', 'enrollment']) {
    const [last = ''] = readFileSync(join(data, 'logs', `${name}.log`), 'utf8')
      .trimEnd()
      .split('\n')
      .slice(-1)
    t.match(JSON.parse(last), { event: 'stopping' }, `the ${name} was asked to stop, not killed`)
  }
})

t.test('Ctrl-C while it starts leaves nothing running', linux, async (t) => {
  const starting = startMuster(t, [
    'up',
    '--data',
    join(scratch(t), 'data'),
    '--port-base',
    String(portBase),
    '--no-demo',
  ])
  await starting.says(/Root CA/)
  const children = Object.values(childrenOf(starting.child.pid))
  const { status, stderr } = await interrupt(starting)
  t.equal(status, 0, stderr)
  await untilGone(children)
})
