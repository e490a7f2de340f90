/** What broker and enrollment measure, of a plane in which something happens; and the dashboard that shows it. */
import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import t, { type Test } from 'tap'
import { enrollDevice, newRequest, type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'
import { connectAs, disconnected, invitedBroker, runBroker } from '../support/running-broker.ts'

const DASHBOARD = resolve(import.meta.dirname, '../../docs/grafana/muster.json')

/** A sample as its line says it. */
interface Sample {
  readonly name: string
  readonly labels: string
  readonly value: number
}

async function scrape(port: number | null): Promise<{ text: string; samples: Sample[] }> {
  const text = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text()
  const samples = text.split('\n').flatMap((line) => {
    const [, name, labels = '', value] = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line) ?? []
    return name === undefined ? [] : [{ name, labels, value: Number(value) }]
  })
  return { text, samples }
}

function sum(samples: readonly Sample[], name: string, labels = ''): number {
  const found = samples.filter((sample) => sample.name === name && sample.labels.includes(labels))
  return found.reduce((total, { value }) => total + value, 0)
}

async function plane(t: Test) {
  const service = await startEnrollment(t, { metrics: true })
  const broker = await runBroker(t, [...(await invitedBroker(service, 'edge')), '--metrics-port', '0'])
  return { service, broker }
}

async function hold(service: RunningEnrollment, device: string): Promise<void> {
  const scope = { kind: 'device', id: device } as const
  const plan = await service.admin.proposePlan({ action: 'hold', scope, reason: 'unspecified' })
  await service.admin.applyPlan(plan.id, plan.counts.devices)
  await service.admin.receipt(plan.id, 10_000)
}

t.test(
  'metrics count what happens, by names that are bounded, and name no device and no secret',
  async (t) => {
    const { service, broker } = await plane(t)
    const [good, bad] = [
      await enrollDevice(service, { id: 'metered-good' }),
      await enrollDevice(service, { id: 'metered-bad' }),
    ]
    const { csr } = await newRequest('metered-guess')
    await service.client().send('POST', '/v1/enroll', { json: { token: 'wrong', csr } })
    const client = await connectAs(service, broker, good)
    await client.subscribeAsync('devices/metered-good/#', { qos: 1 })
    await client.publishAsync('devices/metered-good/up', 'x', { qos: 1 })
    const stopped = await connectAs(service, broker, bad)
    await hold(service, 'metered-bad')
    await disconnected(stopped)
    await t.rejects(connectAs(service, broker, bad))

    const { text, samples } = await scrape(broker.metricsPort)
    t.equal(sum(samples, 'muster_broker_sessions'), 1)
    t.equal(sum(samples, 'muster_broker_clients'), 1)
    t.equal(sum(samples, 'muster_broker_connects_total'), 2)
    t.equal(sum(samples, 'muster_broker_disconnects_total', 'reason="held"'), 1)
    t.equal(sum(samples, 'muster_broker_refusals_total', 'code="R-HELD"'), 1)
    t.equal(sum(samples, 'muster_broker_close_seconds_count'), 1)
    t.ok(sum(samples, 'muster_broker_messages_received_total') >= 1)
    t.ok(sum(samples, 'muster_broker_messages_delivered_total') >= 1)
    t.equal(sum(samples, 'muster_broker_feed_position'), broker.replica.cursor()?.position)
    t.ok(sum(samples, 'muster_broker_certificate_not_after_seconds') > Date.now() / 1_000)

    const enrollment = await scrape(service.metricsPort)
    t.equal(sum(enrollment.samples, 'muster_enrollment_issued_total', 'recipe="enroll"'), 2)
    t.equal(sum(enrollment.samples, 'muster_enrollment_refusals_total', 'code="R-TOKEN-UNKNOWN"'), 1)
    t.equal(sum(enrollment.samples, 'muster_enrollment_brokers', 'state="up"'), 1)
    t.equal(sum(enrollment.samples, 'muster_enrollment_devices', 'state="active"'), 2)
    t.ok(sum(enrollment.samples, 'muster_enrollment_reply_seconds_count', 'route="/v1/enroll"') >= 3)
    t.ok(
      sum(enrollment.samples, 'muster_enrollment_commit_intents_total') >=
        sum(enrollment.samples, 'muster_enrollment_commits_total'),
    )
    t.ok(sum(enrollment.samples, 'muster_enrollment_journal_bytes') > 0)
    t.ok(sum(enrollment.samples, 'muster_enrollment_disk_free_bytes', 'of="journal"') > 0)
    t.ok(sum(enrollment.samples, 'muster_enrollment_crl_next_update_seconds') > Date.now() / 1_000)
    t.equal(sum(enrollment.samples, 'muster_enrollment_ca_not_after_seconds') > 0, true)
    const all = text + enrollment.text
    for (const secret of ['metered', good.token, good.serial, good.fingerprint, '127.0.0.1']) {
      t.notOk(all.includes(secret), `${secret} is in no metric`)
    }
    await client.endAsync(true)
  },
)

t.test('the dashboard of Grafana shows metrics that exist, and every one of them', async (t) => {
  const { service, broker } = await plane(t)
  const existing = new Set<string>()
  for (const port of [service.metricsPort, broker.metricsPort]) {
    const { text } = await scrape(port)
    for (const [, name = ''] of text.matchAll(/^# TYPE (\w+) /gm)) existing.add(name)
  }
  const dashboard = readFileSync(DASHBOARD, 'utf8')
  const { panels } = JSON.parse(dashboard) as { panels: { title: string; targets?: { expr: string }[] }[] } // by Grafana's schema
  const shown = new Set<string>()
  for (const { title, targets = [] } of panels) {
    for (const { expr } of targets) {
      const names = [...expr.matchAll(/\b(?:muster|process)_\w+/g)].map(([name]) =>
        name.replace(/_(bucket|sum|count)$/, ''),
      )
      t.not(names.length, 0, `"${title}" asks for a metric`)
      for (const name of names) {
        t.ok(existing.has(name), `"${title}": ${name} exists`)
        shown.add(name)
      }
    }
  }
  t.strictSame(
    [...existing].filter((name) => !shown.has(name)),
    [],
    'every metric is shown',
  )
})
