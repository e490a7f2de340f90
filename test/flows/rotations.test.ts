import { setTimeout as delay } from 'node:timers/promises'
import type { MqttClient } from 'mqtt'
import t from 'tap'
import type { RotationRequest } from '#shared/api'
import { type RenewalHint, readHint } from '#shared/renewal-hint'
import { enrollDevice, newRequest, startEnrollment } from '../support/enrollment.ts'
import { connectAs, invitedBroker, runBroker } from '../support/running-broker.ts'

/** The first hint for which `holds`; the time limit of the test is its deadline. */
function hintThat(client: MqttClient, holds: (hint: RenewalHint) => boolean): Promise<RenewalHint> {
  return new Promise((resolve) => {
    client.on('message', (_topic, payload) => {
      const hint = readHint(payload)
      if (hint !== null && holds(hint)) resolve(hint)
    })
  })
}

t.test('a campaign tells a connected device to renew, and shows that it has', async (t) => {
  const service = await startEnrollment(t)
  const broker = await runBroker(t, await invitedBroker(service, 'north'))
  const device = await enrollDevice(service, { id: 'd1' })
  await enrollDevice(service, { id: 'd2' })
  const client = await connectAs(service, broker, device)
  const first = hintThat(client, ({ renewAfter }) => renewAfter > Date.now())
  const moved = hintThat(client, ({ renewAfter }) => renewAfter <= Date.now())
  await client.subscribeAsync('devices/d1/muster/#', { qos: 1 })
  const { serial } = await first
  const { id } = await service.admin.beginRotation({ scope: { kind: 'batch', id: 'lab' }, overMs: 0 })
  t.equal((await moved).serial, serial, 'the same certificate is due now')
  const key = await newRequest('d1')
  const reply = await service.client(device).send('POST', '/v1/renew', { json: { csr: key.csr } })
  t.equal(reply.status, 200)
  const next = { id: 'd1', certificate: JSON.parse(reply.text).certificate, key: key.key }
  const renewed = await connectAs(service, broker, next)
  const progress = async () => {
    for (const signal = AbortSignal.timeout(10_000); !signal.aborted; await delay(20)) {
      const seen = await service.admin.showRotation(id)
      if (seen.rotated === 1) return seen
    }
    throw new Error('no broker has reported the new certificate')
  }
  t.match(await progress(), { state: 'paced', moved: 2, rotated: 1, late: 1, stragglers: ['d2'], gone: 0 })
  t.match((await service.admin.listRotations())[0], { id })
  await Promise.all([client.endAsync(true), renewed.endAsync(true)])
})

t.test('a campaign that cannot be is refused', async (t) => {
  const service = await startEnrollment(t)
  const wrong: [string, object, RegExp][] = [
    ['nothing', { overMs: 0 }, /invalid_request/],
    [
      'two scopes',
      { overMs: 0, scope: { kind: 'fleet', id: 'default' }, devices: ['d1'] },
      /invalid_request/,
    ],
    ['no devices', { overMs: 0, devices: [] }, /invalid_request/],
    ['a negative time', { overMs: -1, scope: { kind: 'fleet', id: 'default' } }, /invalid_request/],
    ['an issuer', { overMs: 0, scope: { kind: 'issuer', id: 'x' } }, /invalid_request/],
    ['a time of centuries', { overMs: 1e15, scope: { kind: 'fleet', id: 'default' } }, /invalid_request/],
    ['an unknown fleet', { overMs: 0, scope: { kind: 'fleet', id: 'none' } }, /not_found/],
  ]
  for (const [name, request, code] of wrong) {
    await t.rejects(service.admin.beginRotation(request as RotationRequest), { code }, name)
  }
  await t.rejects(service.admin.showRotation('none'), { code: 'not_found' })
})
