import { once } from 'node:events'
import { connect } from 'node:net'
import { PassThrough } from 'node:stream'
import { text } from 'node:stream/consumers'
import t, { type Test } from 'tap'
import { openLog } from '#shared/log'
import { measureProcess, openMetrics } from '#shared/metrics'
import { openMetricsListener } from '#shared/metrics-listener'
import { readMetricsAddress } from '#shared/metrics-options'
import { Tally } from '#shared/tally'

async function listening(t: Test) {
  const metrics = openMetrics()
  metrics.gauge({ name: 'muster_test', help: 'A value.', read: async () => 7 })
  const logged = new PassThrough()
  const listener = await openMetricsListener(metrics, {
    host: '127.0.0.1',
    port: 0,
    log: openLog('broker', 'debug', logged),
  })
  t.teardown(() => listener.stop())
  /** The whole reply to these octets, until the server closes. */
  const raw = async (octets: string) => {
    const socket = connect(listener.port, '127.0.0.1')
    socket.on('error', () => {}) // the server may close before everything is written
    socket.write(octets)
    return text(socket).catch(() => '')
  }
  return { metrics, listener, raw, url: `http://127.0.0.1:${listener.port}` }
}

t.test('a scraper gets the metrics as Prometheus reads them, and health, from one address', async (t) => {
  const { url } = await listening(t)
  const reply = await fetch(`${url}/metrics`)
  t.equal(reply.status, 200)
  t.match(reply.headers.get('content-type'), /^text\/plain; version=0\.0\.4/)
  t.match(await reply.text(), /# HELP muster_test A value\.\n# TYPE muster_test gauge\nmuster_test 7\n/)
  t.equal(await (await fetch(`${url}/healthz`)).text(), 'ok\n')
})

t.test(
  'the listener for metrics answers nothing else, reads no body and takes no large headers',
  async (t) => {
    const { url, raw } = await listening(t)
    for (const path of ['/', '/metrics/', '/metrics?x=1', '/v1/status', '/..%2fmetrics']) {
      t.equal((await fetch(url + path)).status, 404, path)
    }
    for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS', 'HEAD']) {
      t.equal((await fetch(`${url}/metrics`, { method })).status, 405, method)
    }
    const declared = 'GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n'
    t.match(await raw(declared), /^HTTP\/1\.1 200 .*connection: close/is, 'a body is not waited for')
    t.match(
      await raw(`GET /metrics HTTP/1.1\r\nHost: x\r\nX-Large: ${'x'.repeat(8_192)}\r\n\r\n`),
      /^HTTP\/1\.1 431 /,
    )
    t.match(await raw('\u0016\u0003\u0001 not HTTP\r\n\r\n'), /^HTTP\/1\.1 400 /)
    t.equal((await fetch(`${url}/metrics`)).status, 200, 'and it still serves')
  },
)

t.test('a reading that fails is a 500 without its reason, and does not end the process', async (t) => {
  const { metrics, url } = await listening(t)
  metrics.gauge({
    name: 'muster_failing',
    help: 'A secret.',
    read: () => {
      throw new Error('secret reason')
    },
  })
  const reply = await fetch(`${url}/metrics`)
  t.equal(reply.status, 500)
  t.notMatch(await reply.text(), /secret/)
})

t.test(
  'scrapers beyond the most that are served wait for nobody: their connections are dropped',
  async (t) => {
    const { listener, url } = await listening(t)
    const silent = Array.from({ length: 32 }, () => connect(listener.port, '127.0.0.1'))
    await Promise.all(silent.map((socket) => once(socket, 'connect')))
    const extra = connect(listener.port, '127.0.0.1')
    extra.on('error', () => {})
    await once(extra, 'close')
    for (const socket of silent) socket.destroy()
    await Promise.all(silent.map((socket) => once(socket, 'close')))
    let status = 0
    while (status !== 200)
      status = await fetch(`${url}/healthz`).then(
        (reply) => reply.status,
        () => 0,
      )
    t.equal(status, 200)
  },
)

t.test('a process says how late its event loop is, its memory and its processor time', async (t) => {
  const metrics = openMetrics()
  const stop = measureProcess(metrics)
  t.teardown(stop)
  const text = await metrics.text()
  t.match(text, /process_resident_memory_bytes [1-9]/)
  t.match(text, /process_cpu_seconds_total \d/)
  t.match(text, /muster_event_loop_lag_seconds_bucket\{le="0\.005"\} \d/)
})

t.test('counts by name stay as many as they may be', async (t) => {
  const tally = new Tally(2)
  for (const name of ['a', 'b', 'c', 'd', 'a']) tally.add(name)
  t.strictSame(tally.readings('code'), [
    { labels: { code: 'a' }, value: 2 },
    { labels: { code: 'b' }, value: 1 },
    { labels: { code: 'other' }, value: 2 },
  ])
})

t.test('nothing listens for metrics unless a port is named, and then on this machine alone', async (t) => {
  const faults: string[] = []
  t.equal(readMetricsAddress({}, faults), null)
  t.strictSame(readMetricsAddress({ 'metrics-port': '9100' }, faults), { host: '127.0.0.1', port: 9100 })
  t.strictSame(faults, [])
  readMetricsAddress({ 'metrics-port': '70000', 'metrics-listen': 'everywhere' }, faults)
  t.match(faults, [/--metrics-listen must be an IP address/, /--metrics-port must be a number/])
})
