/** A second factor from the operator's command to the broker that asks for it. */
import { generateKeyPairSync, sign } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { connect, type IClientOptions, type MqttClient } from 'mqtt'
import t from 'tap'
import type { AdminClient } from '#shared/admin-client'
import { enrollDevice, newRequest, type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'
import { type ClientPair, disconnected, invitedBroker, runBroker } from '../support/running-broker.ts'

/** Connects with a password; rejects with the return code when it is refused. */
function come(
  service: RunningEnrollment,
  { port }: { readonly port: number },
  { id, certificate, key, password }: ClientPair & { readonly password?: string },
): Promise<MqttClient> {
  const credentials = password === undefined ? {} : { username: id, password }
  const client = connect({
    ...{ protocol: 'mqtts', host: 'localhost', port, ca: service.root, clientId: id, reconnectPeriod: 0 },
    ...{ cert: certificate + service.deps.authority.device.pem, key, ...credentials },
  } as IClientOptions) // the parts are those of the options
  return new Promise((resolve, reject) => {
    client.once('connect', () => resolve(client))
    client.on('error', reject)
    client.once('close', () => reject(new Error('closed')))
  })
}

const REFUSED = { code: 5 }

t.test('with a real registry and a real broker', async (t) => {
  const service = await startEnrollment(t)
  const { admin }: { admin: AdminClient } = service
  const broker = await runBroker(t, await invitedBroker(service, 'broker-1'))
  const { csr, key } = await newRequest()
  const { certificate } = await admin.createService({ id: 'backend', csr })
  const backend = { id: 'backend', key, certificate }
  const device = await enrollDevice(service, { id: 'lamp' })
  /** Resolves when the broker knows everything that is committed now. */
  const caughtUp = async () => {
    const { position } = await service.deps.registry.cursor()
    while ((broker.replica.cursor()?.position ?? -1) < position) await new Promise(setImmediate)
  }
  const scope = { kind: 'service', id: 'backend' } as const

  t.test('a service is asked for a password that the registry made; its open session ends', async (t) => {
    const before = await come(service, broker, backend)
    const { password = '', ...view } = await admin.setFactor(scope, { kind: 'password' })
    t.match(password, /^[A-Za-z0-9_-]{43}$/)
    t.same(view, { scope: 'service', id: 'backend', kind: 'password' })
    t.same(await admin.showFactor(scope), view, 'it is shown once')
    await disconnected(before)
    await caughtUp()
    await t.rejects(come(service, broker, backend), REFUSED)
    await t.rejects(come(service, broker, { ...backend, password: 'guess' }), REFUSED)
    const client = await come(service, broker, { ...backend, password })
    const next = await admin.setFactor(scope, { kind: 'password' })
    await disconnected(client)
    await caughtUp()
    await t.rejects(come(service, broker, { ...backend, password }), REFUSED, 'the one before has ended')
    const again = await come(service, broker, { ...backend, password: next.password ?? '' })
    await again.endAsync()
    await (await come(service, broker, device)).endAsync() // nobody else is asked

    const kept = readdirSync(service.data, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => readFileSync(join(entry.parentPath, entry.name)).toString('latin1'))
    t.notOk(
      [...kept, ...broker.logged, ...service.logged].some((text) => text.includes(password)),
      'the password is in no file and no log',
    )
  })

  t.test('explain says what was missing', async (t) => {
    await t.rejects(come(service, broker, backend), REFUSED)
    let told = ''
    while (!told.includes('R-FACTOR')) {
      told = JSON.stringify(await admin.explain('backend'))
      await new Promise(setImmediate)
    }
    t.match(told, /missing|wrong/)
  })

  t.test('without it the certificate is enough again', async (t) => {
    t.match(await admin.clearFactor(scope), { kind: 'none' })
    await caughtUp()
    await (await come(service, broker, backend)).endAsync()
    t.pass()
  })

  t.test('each device of a fleet brings a token of its own', async (t) => {
    const { privateKey, publicKey } = generateKeyPairSync('ed25519')
    const jwks = JSON.stringify({ keys: [{ ...publicKey.export({ format: 'jwk' }), kid: 'k1' }] })
    const rules = { issuer: 'https://id.example', audience: 'muster', algorithms: ['EdDSA' as const], jwks }
    await admin.setFactor({ kind: 'fleet', id: 'default' }, { kind: 'jwt', rules })
    await caughtUp()
    const tokenFor = (sub: string) => {
      const exp = Math.floor(Date.now() / 1000) + 3_600
      const parts = [
        { alg: 'EdDSA', kid: 'k1' },
        { iss: rules.issuer, aud: rules.audience, sub, exp },
      ]
      const input = parts.map((part) => Buffer.from(JSON.stringify(part)).toString('base64url')).join('.')
      return `${input}.${sign(null, Buffer.from(input), privateKey).toString('base64url')}`
    }
    await t.rejects(come(service, broker, device), REFUSED)
    await t.rejects(come(service, broker, { ...device, password: tokenFor('other') }), REFUSED)
    const options = await invitedBroker(service, 'broker-2')
    const newcomer = await runBroker(t, options)
    await t.rejects(
      come(service, newcomer, device),
      REFUSED,
      'a broker that hears of it by a snapshot asks as well',
    )
    await newcomer.stop()
    const restarted = await runBroker(t, options)
    await t.rejects(come(service, restarted, device), REFUSED, 'and after a restart')
    await (await come(service, restarted, { ...device, password: tokenFor('lamp') })).endAsync()
    const client = await come(service, broker, { ...device, password: tokenFor('lamp') })
    await admin.clearFactor({ kind: 'fleet', id: 'default' })
    await caughtUp()
    t.ok(client.connected, 'who has brought more than is asked for stays')
    await client.endAsync()
  })

  t.test('what cannot be asked for is refused', async (t) => {
    const rules = { issuer: 'i', audience: 'a', algorithms: ['ES256' as const] }
    const jwks = (key: object) => JSON.stringify({ keys: [key] })
    const bad = [
      rules,
      { ...rules, jwks: 'no', url: 'https://id.example' },
      { ...rules, jwks: 'no JSON' },
      { ...rules, jwks: '{"keys":[]}' },
      { ...rules, jwks: jwks({ kty: 'oct', kid: 'k1', k: 'secret' }) },
      { ...rules, jwks: jwks({ kty: 'EC', crv: 'P-256' }) },
      { ...rules, jwks: jwks({ kty: 'EC', kid: 'k1', d: 'private' }) },
      { ...rules, url: 'http://id.example' },
      { ...rules, algorithms: ['HS256'], url: 'https://id.example' },
      { ...rules, algorithms: [], url: 'https://id.example' },
    ]
    for (const request of bad) {
      await t.rejects(
        admin.setFactor(scope, { kind: 'jwt', rules: request as typeof rules }), // as nobody should send it
        { code: 'invalid_request' },
        JSON.stringify(request),
      )
    }
    await t.rejects(admin.setFactor({ kind: 'service', id: 'lamp' }, { kind: 'password' }), {
      code: 'not_found',
    })
    await t.rejects(admin.showFactor({ kind: 'fleet', id: 'none' }), { code: 'not_found' })
  })
})
