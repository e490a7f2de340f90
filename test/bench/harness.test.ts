import { fork } from 'node:child_process'
import { once } from 'node:events'
import t from 'tap'
import { openSqlite } from '#shared/sqlite'
import { childSeconds } from '../../bench/crl.ts'
import {
  type BenchContext,
  compare,
  cpuMsEach,
  type Measured,
  median,
  perCpuSecond,
  type Side,
} from '../../bench/harness.ts'
import { tableOf } from '../../bench/main.ts'
import { cpuSeconds, need, ticksOf } from '../../bench/processes.ts'
import { differences } from '../../bench/registry-compare.ts'
import { checkAdded, loadDevices, rowCounts } from '../../bench/registry-load.ts'
import { Reply } from '../../bench/reply.ts'
import { newCsr } from '../../bench/requests.ts'
import { checkCsr, decodeCsr } from '../../enrollment/ca/check-csr.ts'
import { MIGRATIONS } from '../../enrollment/registry/schema.ts'
import { startEnrollment } from '../support/enrollment.ts'

t.test('the median is the middle, and needs values', async (t) => {
  t.equal(median([3, 1, 2]), 2)
  t.equal(median([4, 1, 3, 2]), 2.5)
  t.equal(median([7]), 7)
  t.throws(() => median([]), RangeError)
})

t.test('a rate is by the server’s processor time, and a run without any is no measurement', async (t) => {
  t.equal(perCpuSecond({ count: 1_000, cpuS: 0.5 }), 2_000)
  t.equal(cpuMsEach({ count: 10, cpuS: 0.5 }), 50)
  t.throws(() => perCpuSecond({ count: 1_000, cpuS: 0 }), RangeError)
})

function context(runs: number): BenchContext {
  return { runs, effort: 1, say: () => {}, ended: () => {} }
}

/** A side whose runs take what the list says, the rehearsal first. */
function side(name: string, { cpuS, order }: { cpuS: readonly number[]; order: string[] }): Side {
  return {
    name,
    command: `run ${name}`,
    version: '1',
    measure: async (run): Promise<Measured> => {
      order.push(`${name}${run}`)
      return { count: 100, cpuS: cpuS[run] ?? 1 }
    },
  }
}

t.test(
  'the sides take turns, the rehearsal is dropped, and the ratio is ours over the first peer',
  async (t) => {
    const order: string[] = []
    const ours = side('ours', { cpuS: [9, 0.5, 0.5, 0.1, 0.5, 2], order })
    const peers = [
      side('first', { cpuS: [9, 1, 1, 1, 1, 1], order }),
      side('second', { cpuS: [9, 0.25, 0.25, 0.25, 0.25, 0.25], order }),
    ]
    const how = { context: context(5), unit: 'x/CPU-s', better: 'higher', figure: perCpuSecond } as const
    const result = await compare({ ours, peers }, how)
    t.strictSame(order.slice(0, 6), ['ours0', 'first0', 'second0', 'ours1', 'first1', 'second1'])
    t.equal(order.length, 18)
    t.strictSame(result.ours.runs, [200, 200, 1_000, 200, 50])
    t.match(result, {
      ratio: 2,
      ratios: { first: 2, second: 0.5 },
      ours: { value: 200, command: 'run ours' },
    })

    const rehearsed: string[] = []
    const warm = [
      side('ours', { cpuS: [9], order: rehearsed }),
      side('first', { cpuS: [9], order: rehearsed }),
    ]
    const [mine = ours, peer = ours] = warm
    const { ours: last } = await compare({ ours: mine, peers: [peer] }, { ...how, rehearsals: 2 })
    t.strictSame(rehearsed.slice(0, 6), ['ours0', 'first0', 'ours0', 'first0', 'ours1', 'first1'])
    t.equal(last.runs.length, 5, 'each side rehearses as often, and nothing of it counts')

    const alone = await compare({ ours: side('ours', { cpuS: [], order }), peers: [] }, how)
    t.equal(alone.ratio, null)
    t.match(tableOf({ schemaVersion: 1, name: 'demo', ...result, also: { alone } }), /ours is 2x this/)
  },
)

t.test('what is read of /proc is user and system time, whatever a program is called', async (t) => {
  const stat = '7 (a) b) R 1 7 7 0 -1 4194560 1 0 0 0 150 25 0 0 20 0 1 0 1 1 1'
  t.equal(ticksOf(stat), 175)
})

t.test(
  'the time of a process includes that of its children',
  { skip: process.platform !== 'linux' },
  async (t) => {
    const child = fork(
      '-e',
      [
        "process.once('message', () => { const end = process.cpuUsage().user + 3e5; while (process.cpuUsage().user < end); process.send(1) }); process.send(0)",
      ],
      { execArgv: [], stdio: 'ignore' },
    )
    t.teardown(() => child.kill())
    t.equal((await once(child, 'message'))[0], 0)
    const before = cpuSeconds(process.pid)
    child.send('work')
    await once(child, 'message')
    t.ok(cpuSeconds(process.pid) - before >= 0.25, 'of 0.3 s, in ticks of 10 ms')
  },
)

t.test('a peer that is missing is named with its package', async (t) => {
  t.throws(() => need('cfssl', '/nowhere'), { code: 'unavailable', message: /apt-get install golang-cfssl/ })
})

t.test('a reply is whole when its length says so, or its last chunk has come', async (t) => {
  const whole = 'HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody'
  const reply = new Reply()
  for (const character of whole.slice(0, -1)) t.equal(reply.add(Buffer.from(character)), null)
  t.strictSame(reply.add(Buffer.from('y')), { status: 200, body: 'body' })
  const chunked = 'HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n'
  t.equal(new Reply().add(Buffer.from(chunked.slice(0, -3))), null)
  t.strictSame(new Reply().add(Buffer.from(chunked)), { status: 404, body: 'abcde' })
})

t.test('the requests that the benches send are good ones', async (t) => {
  t.match(await checkCsr(decodeCsr(newCsr('bench-1'))), { commonName: 'bench-1', uris: [] })
})

t.test('what the shell says of its children is added up', async (t) => {
  t.equal(childSeconds('0m0.01s 0m0.02s\n1m0.25s 0m0.50s\n'), 60.75)
})

t.test('a loaded registry has the rows that enrolling writes, and its chain is whole', async (t) => {
  const first = await startEnrollment(t, { data: t.testdir({}) })
  const { data, config } = first
  const { registry: path } = config.layout
  const { token } = await first.admin.createToken({ batch: 'bench', uses: 1_000 })
  const enroll = async (id: string) => {
    const reply = await first.client().send('POST', '/v1/enroll', { json: { token, csr: newCsr(id) } })
    t.equal(reply.status, 200)
  }
  const before = rowCounts(path)
  await enroll('scale-0000000')
  t.doesNotThrow(() => checkAdded(before, rowCounts(path)))
  t.throws(
    () => checkAdded(before, before),
    { code: 'check_failed' },
    'an enrollment that writes something else',
  )
  await enroll('scale-9999999')
  await first.stop()

  loadDevices(path, { like: 'scale-0000000', count: 200 })
  const compared = (loaded: string) => differences(path, { loaded, enrolled: 'scale-9999999' })
  for (const number of ['0000001', '0000077', '0000200']) t.strictSame(compared(`scale-${number}`), [])
  const again = await startEnrollment(t, { data })
  t.match(await again.admin.status(), { devices: { active: 202 } })
  t.match(await again.admin.verifyAudit(), { ok: true })
  t.match(await again.admin.batchReport('bench'), { uses: { enrolled: 202 } })
  await again.stop()
  const db = openSqlite(path, { busyTimeoutMs: 1_000, migrations: MIGRATIONS })
  db.exec(
    "UPDATE certificates SET state = 'active', line = 'x' WHERE device = (SELECT row FROM devices WHERE id = 'scale-0000077')",
  )
  db.close()
  t.strictSame(compared('scale-0000077'), ['certificates.state', 'certificates.line'])
})
