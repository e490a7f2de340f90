import { X509Certificate } from 'node:crypto'
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { type JsonClient, openJsonClient } from '#shared/json-client'
import { openLog } from '#shared/log'
import { generateKey, privateKeyPem } from '#shared/pki/keys'
import { splitPem } from '#shared/pki/pem'
import {
  type Credential,
  enrollBroker,
  isRenewalDue,
  readCredential,
  readInvitation,
  renewCredential,
} from '../../broker/replica/credential.ts'
import { keepRenewed } from '../../broker/replica/renewal.ts'
import { type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'
import { testAuthority, testIdentity } from '../support/pki.ts'

const HOSTS = ['localhost', '127.0.0.1']
const DAY_MS = 86_400_000

let count = 0
function directoryOf(service: RunningEnrollment): string {
  const directory = join(service.data, `broker-${++count}`)
  mkdirSync(directory)
  return directory
}

function clientOf(t: Test, options: Parameters<typeof openJsonClient>[0]): JsonClient {
  const client = openJsonClient(options)
  t.teardown(() => client.close())
  return client
}

async function enrolled(t: Test, service: RunningEnrollment, hosts: readonly string[] = HOSTS) {
  const directory = directoryOf(service)
  const invitation = await service.admin.inviteBroker({})
  const client = clientOf(t, { url: invitation.url, ca: invitation.root })
  const credential = await enrollBroker({ directory, invitation, hosts, client })
  return { directory, invitation, client, credential }
}

/** Passes a request on and loses the reply, as a cut connection does. */
function losing(client: JsonClient): Pick<JsonClient, 'send'> {
  return {
    async send(...request) {
      await client.send(...request)
      throw new Error('the reply is lost')
    },
  }
}

t.test('with a real registry', async (t) => {
  const service = await startEnrollment(t)

  t.test('an invitation becomes a certificate for the key that never left', async (t) => {
    const { directory, credential, invitation } = await enrolled(t, service)
    const leaf = new X509Certificate(credential.certificate)
    t.match(leaf.subjectAltName, /URI:spiffe:\/\/muster.local\/broker\//)
    t.ok(leaf.checkHost('localhost') && leaf.checkIP('127.0.0.1'))
    t.equal(credential.ca, invitation.root)
    t.equal(credential.url, invitation.url)
    t.equal(statSync(join(directory, 'broker.key')).mode & 0o777, 0o600)
    t.same(readCredential(directory), credential)
    t.same(readdirSync(directory).toSorted(), ['broker.crt', 'broker.json', 'broker.key', 'ca.crt'])
  })

  t.test('a lost reply costs no invitation: the same key is sent again', async (t) => {
    const directory = directoryOf(service)
    const invitation = await service.admin.inviteBroker({})
    const client = clientOf(t, { url: invitation.url, ca: invitation.root })
    const request = { directory, invitation, hosts: HOSTS }
    await t.rejects(enrollBroker({ ...request, client: losing(client) }), { message: 'the reply is lost' })
    t.equal(readCredential(directory), null)
    const key = readFileSync(join(directory, 'broker.key'), 'utf8')
    const credential = await enrollBroker({ ...request, client })
    t.equal(credential.key, key)
  })

  t.test('a spent invitation is refused to another key', async (t) => {
    const { invitation, client } = await enrolled(t, service)
    const again = enrollBroker({ directory: directoryOf(service), invitation, hosts: HOSTS, client })
    await t.rejects(again, { code: 'token_spent' })
  })

  t.test('a renewal brings a new key, and a lost reply leaves the old pair good', async (t) => {
    const { directory, credential } = await enrolled(t, service)
    const { url, ca, certificate, key } = credential
    const client = clientOf(t, { url, ca, certificate, key })
    const request = { directory, credential, hosts: [...HOSTS, 'mqtt.example.net'] }
    await t.rejects(renewCredential({ ...request, client: losing(client) }))
    t.same(readCredential(directory), credential)
    const renewed = await renewCredential({ ...request, client })
    t.not(renewed.key, credential.key)
    t.ok(new X509Certificate(renewed.certificate).checkHost('mqtt.example.net'))
    t.same(readCredential(directory), renewed)
    t.notOk(existsSync(join(directory, 'broker.key.next')))
  })

  t.test('a crash between certificate and key is mended at the next start', async (t) => {
    const { directory, credential } = await enrolled(t, service)
    const { url, ca, certificate, key } = credential
    const oldKey = join(directory, 'old.key')
    copyFileSync(join(directory, 'broker.key'), oldKey)
    const client = clientOf(t, { url, ca, certificate, key })
    const renewed = await renewCredential({ directory, credential, hosts: HOSTS, client })
    copyFileSync(join(directory, 'broker.key'), join(directory, 'broker.key.next'))
    copyFileSync(oldKey, join(directory, 'broker.key'))
    t.same(readCredential(directory), renewed)
    t.equal(readFileSync(join(directory, 'broker.key'), 'utf8'), renewed.key)
    t.notOk(existsSync(join(directory, 'broker.key.next')))
  })

  t.test('it is renewed from two thirds of its life on, or when it lacks a host', async (t) => {
    const { credential } = await enrolled(t, service)
    const { notBefore, notAfter } = credential
    const due = notBefore + ((notAfter - notBefore) * 2) / 3
    t.equal(isRenewalDue(credential, HOSTS, due - 1_000), false)
    t.equal(isRenewalDue(credential, HOSTS, due + 1_000), true)
    t.equal(isRenewalDue(credential, [...HOSTS, 'mqtt.example.net'], notBefore), true)
  })

  t.test('a renewal that fails is tried again, and the new pair is put to use', async (t) => {
    const { directory, credential } = await enrolled(t, service)
    const { url, ca, certificate, key } = credential
    const client = clientOf(t, { url, ca, certificate, key })
    const stopping = new AbortController()
    const used = Promise.withResolvers<Credential>()
    let attempts = 0
    const running = keepRenewed(
      {
        current: () => credential,
        hosts: HOSTS,
        renew: (current) => {
          attempts += 1
          if (attempts === 1) throw new Error('the registry is down')
          return renewCredential({ directory, credential: current, hosts: HOSTS, client })
        },
        renewed: (pair) => used.resolve(pair),
        now: () => Date.now() + 25 * DAY_MS,
        random: () => 0,
        log: openLog('test', 'silent'),
        everyMs: 2,
      },
      stopping.signal,
    )
    t.not((await used.promise).key, credential.key)
    stopping.abort()
    await running
    t.ok(attempts >= 2)
  })

  t.test('a key that others can read, or that is not the certificate’s, is not used', async (t) => {
    const { directory } = await enrolled(t, service)
    chmodSync(join(directory, 'broker.key'), 0o640)
    t.throws(() => readCredential(directory), { code: 'key_file_insecure', message: /chmod 600/ })
    chmodSync(join(directory, 'broker.key'), 0o600)
    writeFileSync(join(directory, 'broker.key'), privateKeyPem(generateKey()))
    t.throws(() => readCredential(directory), { code: 'directory_unusable', message: /muster broker invite/ })
    writeFileSync(join(directory, 'broker.crt'), 'no certificate')
    t.throws(() => readCredential(directory), { code: 'directory_unusable', message: /muster broker invite/ })
  })

  t.test('what is no invitation is refused with the command that makes one', async (t) => {
    const path = join(directoryOf(service), 'invitation.json')
    for (const text of ['', '{}', '[]', '{"url":1}', '\0']) {
      writeFileSync(path, text)
      t.throws(() => readInvitation(path), { code: 'config_invalid', message: /muster broker invite/ })
    }
    t.throws(() => readInvitation(`${path}.missing`), { code: 'config_invalid' })
    const invitation = await service.admin.inviteBroker({})
    writeFileSync(path, JSON.stringify(invitation))
    t.same(readInvitation(path), invitation)
  })

  t.test(
    'a renewal after a change of the root leads from the root that is known to the new one',
    async (t) => {
      const { directory, credential } = await enrolled(t, service)
      await service.admin.startRollover({ root: true })
      await service.admin.cutOverRollover({ threshold: 0 })
      const { url, ca, certificate, key } = credential
      const client = clientOf(t, { url, ca, certificate, key })
      const renewed = await renewCredential({ directory, credential, hosts: HOSTS, client })
      t.equal(splitPem(renewed.ca).length, 2, 'it trusts both roots')
      t.ok(renewed.ca.includes(ca.trim()))
      t.equal(splitPem(renewed.certificate).length, 3, 'it sends the link to the old root')
      const again = clientOf(t, { url, ca: renewed.ca, certificate: renewed.certificate, key: renewed.key })
      const twice = await renewCredential({ directory, credential: renewed, hosts: HOSTS, client: again })
      t.same(readCredential(directory), twice)
    },
  )
})

t.test('a certificate of another root, or for another key, is not stored', async (t) => {
  const [ours, theirs] = await Promise.all([testAuthority(), testAuthority()])
  t.teardown(() => [ours, theirs].map((authority) => authority.remove()))
  const directory = t.testdir()
  const invitation = { url: 'https://localhost:1', token: 'x', root: ours.rootPem, expiresAt: 0 }
  for (const authority of [ours, theirs]) {
    const other = await testIdentity(authority, 'broker-1', { kind: 'broker' })
    const reply = {
      broker: 'broker-1',
      notAfter: 0,
      certificate: other.pem,
      chain: [authority.infrastructure.pem, authority.rootPem],
      trustDomain: 'muster.test',
    }
    const client = { send: async <Reply>() => reply as Reply } // the one reply that this test is about
    await t.rejects(enrollBroker({ directory, invitation, hosts: HOSTS, client }), { code: 'check_failed' })
    t.same(readdirSync(directory), ['broker.key'])
  }
})
